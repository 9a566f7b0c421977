"""Linear layers that hold the LoRA matrices of several seeds over one frozen base."""

from typing import Any


class Adapters:
    """All seeds' matrices in one buffer of (seeds, parameters), float32: one gradient, one norm, one update.

    First come all A, then all B, so that the scaling lies on the working copy of A. `work` is that copy in the
    precision of the base; `grad` is of the working copy until `finish_gradient`.
    """

    def __init__(self, starts: list[dict[str, Any]], scaling: float, dtype: Any, device: Any):
        import torch

        self.scaling = scaling
        matrices = sorted(starts[0], key=lambda name: ".lora_B." in name)
        self.places: dict[str, tuple[int, tuple[int, int]]] = {}
        self.end_of_a = end = 0
        for name in matrices:  # PEFT's own (out, in) matrices, transposed
            rows, columns = starts[0][name].T.shape
            self.places[name] = (end, (rows, columns))
            end += rows * columns
            if ".lora_A." in name:
                self.end_of_a = end
        flat = [torch.cat([start[name].T.flatten() for name in matrices]) for start in starts]
        self.weights = torch.nn.Parameter(torch.stack(flat).to(device))
        self.grad = self.weights.grad = torch.zeros_like(self.weights)
        self.work = torch.empty_like(self.weights, dtype=dtype, requires_grad=False)
        self.copy_weights()

    def view(self, buffer: Any, name: str) -> Any:
        """One matrix of all seeds, (seeds, rows, columns), as a view of the buffer."""
        start, (rows, columns) = self.places[name]
        return buffer.detach()[:, start : start + rows * columns].unflatten(1, (rows, columns))

    def copy_weights(self) -> None:
        self.work.copy_(self.weights.detach())
        self.work[:, : self.end_of_a] *= self.scaling

    def finish_gradient(self) -> None:
        """From the gradient of scaling * A to that of A."""
        self.grad[:, : self.end_of_a] *= self.scaling


def stacked_lora() -> Any:
    """Make the layer class; torch is imported late."""
    import torch
    from torch import nn

    class StackedLora(nn.Module):
        """A frozen linear layer with one LoRA for each seed: y + dropout(x) (scaling A) B, in stretches of x.

        x is (1, seeds * length, in): a stretch of equal length for each seed. `masks` gives the inputs that stay.
        """

        def __init__(self, base: Any, adapters: Adapters, name: str, dropout: float, masks: Any):
            super().__init__()
            self.base, self.p, self.masks = base, dropout, masks
            names = name, name.replace(".lora_A.", ".lora_B.")
            self.work = [adapters.view(adapters.work, n) for n in names]
            self.grads = [adapters.view(adapters.grad, n) for n in names]

        def forward(self, x: Any) -> Any:
            keep = self.masks(x.shape[-1]) if self.training and self.p > 0 else None
            if not x.requires_grad:
                x = x.detach().requires_grad_()  # of the first layer: the adapters' gradients come by way of x
            return AddLora.apply(self.base(x), x, self, keep)

    class AddLora(torch.autograd.Function):
        """y + dropout(x) A B for each seed's stretch; y is overwritten. The gradients of A and B are added to their
        buffers, and what was dropped is computed again on the way back."""

        @staticmethod
        def forward(ctx: Any, y: Any, x: Any, layer: Any, keep: Any) -> Any:
            (a, b), seeds = layer.work, layer.work[0].shape[0]
            low = torch.bmm(drop(x.view(seeds, -1, x.shape[-1]), keep, layer.p), a)
            stretches = y.view(seeds, -1, y.shape[-1])
            torch.baddbmm(stretches, low, b, out=stretches)
            ctx.save_for_backward(x, low, keep)
            ctx.layer = layer
            ctx.mark_dirty(y)
            return y

        @staticmethod
        def backward(ctx: Any, dy: Any) -> Any:
            x, low, keep = ctx.saved_tensors
            (a, b), (grad_a, grad_b), p = ctx.layer.work, ctx.layer.grads, ctx.layer.p
            seeds = a.shape[0]
            stretches, inputs = dy.reshape(seeds, -1, dy.shape[-1]), x.view(seeds, -1, x.shape[-1])
            dlow = torch.bmm(stretches, b.transpose(1, 2))
            grad_b.add_(torch.bmm(low.transpose(1, 2), stretches))
            grad_a.add_(torch.bmm(drop(inputs, keep, p).transpose(1, 2), dlow))
            return dy, drop(torch.bmm(dlow, a.transpose(1, 2)), keep, p).view(x.shape), None, None

    def drop(x: Any, keep: Any, p: float) -> Any:
        """x * keep / (1 - p) in one pass over contiguous memory."""
        return x if keep is None else torch.ops.aten.native_dropout_backward(x, keep, 1 / (1 - p))

    return StackedLora
