"""The interpreter that has vLLM: it pins its own torch and transformers, so its environment is another one."""

import argparse
import os
import sys
from collections.abc import Sequence

from workflow.keys import Recipe

VARIABLE = "VLLM_PYTHON"


def vllm_python() -> str | None:
    """What the environment names, or None: then the interpreter that runs has vLLM, or nobody needs it."""
    return os.environ.get(VARIABLE) or None


def switch(module: str, argv: Sequence[str]) -> None:
    """Go on as that interpreter, in the same process, if the recipe on the command line asks for the backend vllm."""
    from workflow.launch import ADDRESS, TOKEN

    python = vllm_python()
    if python is None or not _asks_for_vllm(argv):
        return
    # not through the launcher, whose children are of the other environment; and once only
    env = {name: value for name, value in os.environ.items() if name not in (VARIABLE, ADDRESS, TOKEN)}
    try:
        os.execve(python, [python, "-m", module, *argv], env)
    except OSError as error:
        sys.exit(f"error: {VARIABLE}={python}: {error.strerror}. Name the interpreter of envs/vllm.txt.")


def _asks_for_vllm(argv: Sequence[str]) -> bool:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--recipe", type=Recipe.from_json)
    recipe = parser.parse_known_args(list(argv))[0].recipe
    return recipe is not None and recipe.params.get("backend") == "vllm"
