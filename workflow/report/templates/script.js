// Opens what a link leads to, sorts and filters tables, unfolds all but warnings for print. The page works without it.
addEventListener("DOMContentLoaded", () => {
  const reveal = () => {
    const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target) return;
    for (let e = target; e; e = e.parentElement) if (e.tagName === "DETAILS" && !e.dataset.warning) e.open = true;
    target.querySelectorAll(":scope > details.section").forEach(d => { d.open = true; });
    target.scrollIntoView();
  };
  addEventListener("hashchange", reveal);
  reveal();
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details:not([open]):not([data-warning])")];
    closed.forEach(d => { d.open = true; });
  });
  addEventListener("afterprint", () => closed.forEach(d => { d.open = false; }));

  const value = cell => {
    const text = cell ? cell.textContent.trim().replace(/[\u202f,]/g, "").replace(/−/g, "-") : "";
    const number = parseFloat(text.replace(/^[<±] ?/, "").replace(/^(-?)\./, "$10."));
    return /^[<±]? ?[+-]?[.\d]/.test(text) && !isNaN(number) ? number : text;
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const body = table.tBodies[0];
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      head.tabIndex = 0;
      head.setAttribute("aria-sort", "none");
      const sort = () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        for (const other of table.tHead.rows[0].cells) other.setAttribute("aria-sort", "none");
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const rows = [...body.rows].map(row => [value(row.cells[column]), row]);
        const kind = v => typeof v === "number" ? 0 : 1;
        rows.sort(([a], [b]) => kind(a) - kind(b) || (down ? -1 : 1) * (kind(a) ? String(a).localeCompare(b) : a - b));
        body.append(...rows.map(([, row]) => row));
      };
      head.addEventListener("click", sort);
      head.addEventListener("keydown", e => { if (e.key === "Enter" || e.key === " ") { e.preventDefault(); sort(); } });
    });
    if (body.rows.length < 12) continue;
    const box = document.createElement("div");
    box.className = "tools";
    box.innerHTML = '<input type="search" placeholder="filter rows" aria-label="filter rows">';
    box.firstChild.addEventListener("input", e => {
      const words = e.target.value.toLowerCase().split(/\s+/).filter(Boolean);
      for (const row of body.rows) {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every(word => text.includes(word));
      }
    });
    table.closest(".scroll").before(box);
  }
});
