"use strict";

// Without this script the page says the same; it adds sorting, hiding models in the charts, and the other theme.

function compareCells(first, second, direction) {
  const a = first.dataset.value, b = second.dataset.value;
  if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
  const x = Number(a), y = Number(b);
  const order = Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b) : x - y;
  return direction * order;
}

function sortTable(table, position, direction) {
  for (const body of table.tBodies) {
    const rows = [...body.rows].filter((row) => !row.matches(".group, .aside:last-child"));
    const last = body.querySelector("tr.aside:last-child");
    rows.sort((a, b) => compareCells(a.cells[position], b.cells[position], direction));
    body.append(...rows);
    if (last) body.append(last);
  }
}

for (const table of document.querySelectorAll("table")) {
  [...table.tHead.rows[0].cells].forEach((header, position) => {
    const title = header.querySelector("span");
    const button = document.createElement("button");
    button.type = "button";
    title.replaceWith(button);
    button.append(title);
    button.addEventListener("click", () => {
      const startsHigh = header.classList.contains("number") ? "descending" : "ascending";
      const other = startsHigh === "ascending" ? "descending" : "ascending";
      const next = header.getAttribute("aria-sort") === startsHigh ? other : startsHigh;
      for (const cell of header.parentNode.cells) cell.removeAttribute("aria-sort");
      header.setAttribute("aria-sort", next);
      sortTable(table, position, next === "ascending" ? 1 : -1);
    });
  });
}

for (const button of document.querySelectorAll("[data-toggles]")) {
  button.addEventListener("click", () => {
    const isShown = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", String(isShown));
    for (const drawn of document.querySelectorAll(`svg [data-series="${button.dataset.toggles}"]`)) {
      drawn.classList.toggle("is-off", !isShown);
    }
  });
}

document.getElementById("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const isDark = root.dataset.theme
    ? root.dataset.theme === "dark"
    : window.matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = isDark ? "light" : "dark";
});

window.addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
});
