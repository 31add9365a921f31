"""The page's style and behaviour, written into it."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light; --line: #d8dde3; --soft: #f5f7f9; --ink: #1b2733; --grey: #5b6875; --accent: #0059a0; }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); margin: 0 auto; max-width: 76rem; padding: 1.5rem; }
h1 { font-size: 1.7rem; margin: 0 0 .3rem; }
h2 { font-size: 1.3rem; margin: 0 0 .6rem; overflow-wrap: anywhere; }
h3 { font-size: 1.02rem; margin: 1.6rem 0 .4rem; }
a { color: var(--accent); }
nav ul { columns: 2 22rem; padding-left: 1.2rem; }
section { border-top: 2px solid var(--ink); margin-top: 2.5rem; padding-top: 1rem; }
.facts, .legend, caption { color: var(--grey); font-size: .87rem; }
.legend p { margin: .25rem 0; max-width: 62rem; }
.scroll { overflow-x: auto; margin: .4rem 0 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
caption { text-align: left; padding-bottom: .2rem; }
caption b { color: var(--ink); font-size: 1rem; }
th, td { padding: .28rem .65rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff; }
thead th { background: var(--soft) !important; border-bottom-color: #b3bcc6; }
th.span { text-align: center; border-left: 1px solid var(--line); }
th.text, td.text { text-align: left; }
td.text, tbody td:first-child { white-space: normal; max-width: 26rem; overflow-wrap: break-word; }
tbody td:first-child { max-width: 17rem; }
tbody tr:hover > * { background: #eef4fa; }
td sup { position: absolute; line-height: 1; }
tr.floor { font-style: italic; color: var(--grey); }
.best { font-weight: 700; }
.second { text-decoration: underline; text-underline-offset: .2em; }
.spread { color: var(--grey); font-weight: 400; font-size: .84em; }
th button { font: inherit; font-weight: 600; color: inherit; background: none; border: 0; padding: 0; cursor: pointer; }
th button:focus-visible, summary:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
th button::after { content: "\\2195"; color: #9aa5b0; padding-left: .3em; }
th[aria-sort=ascending] button::after { content: "\\2191"; color: var(--accent); }
th[aria-sort=descending] button::after { content: "\\2193"; color: var(--accent); }
.warning { border-left: 4px solid #b26a00; background: #fff6e5; padding: .5rem .9rem; margin: .6rem 0; }
.warning ul { margin: 0; padding-left: 1.1rem; }
.simulated { background: #b00020; color: #fff; font-weight: 700; padding: .6rem .9rem; margin: .6rem 0; }
details { margin: .6rem 0; }
summary { cursor: pointer; color: var(--accent); }
pre { background: var(--soft); padding: .6rem .8rem; font-size: .82rem; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 34rem), 1fr)); gap: .6rem; }
.figure { min-height: 23rem; min-width: 0; }
@media print { details > * { display: block; } section { break-before: page; } }
"""

SCRIPT = """
"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const read = (row, column) => {
    const cell = row.cells[column];
    return "value" in cell.dataset ? parseFloat(cell.dataset.value) : cell.textContent.trim();
  };
  const empty = (value) => value === "" || value === "\\u2013" || Number.isNaN(value);
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
"""
