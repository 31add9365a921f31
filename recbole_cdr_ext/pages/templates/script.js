"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const read = (row, column) => {
    const cell = row.cells[column];
    return "value" in cell.dataset ? parseFloat(cell.dataset.value) : cell.textContent.trim();
  };
  const empty = (value) => value === "" || value === "\u2013" || Number.isNaN(value);
  for (const head of table.querySelectorAll("th[data-column]")) {
    head.querySelector("button").addEventListener("click", () => {
      const column = Number(head.dataset.column);
      const first = head.dataset.first || "ascending";
      const other = first === "ascending" ? "descending" : "ascending";
      const order = head.getAttribute("aria-sort") === first ? other : first;
      for (const one of table.querySelectorAll("th[aria-sort]")) one.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const rows = Array.from(body.rows, (row) => [read(row, column), row]);
      rows.sort(([a], [b]) => {
        if (empty(a) || empty(b)) return Number(empty(a)) - Number(empty(b));  // gaps last, whichever the order
        const numbers = typeof a === "number" && typeof b === "number";
        return sign * (numbers ? a - b : String(a).localeCompare(String(b), undefined, {numeric: true}));
      });
      body.append(...rows.map(([, row]) => row));
    });
  }
}
for (const place of document.querySelectorAll(".figure")) {
  const figure = JSON.parse(document.getElementById(place.dataset.figure).textContent);
  Plotly.newPlot(place, figure.data, figure.layout, {displaylogo: false, responsive: true});
}
