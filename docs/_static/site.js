// A table that is wider than the screen shows each row as a card, in which a cell has the heading of its column.
document.addEventListener("DOMContentLoaded", () => {
  const tables = [...document.querySelectorAll("article .table-wrapper > table")];
  for (const table of tables) {
    const headings = [...table.querySelectorAll("thead th")].map(each => each.textContent);
    for (const row of table.querySelectorAll("tbody tr")) {
      [...row.cells].forEach((cell, column) => { cell.dataset.heading = headings[column] ?? ""; });
    }
  }
  const fit = () => {
    for (const table of tables) {
      table.classList.remove("cards");
      table.classList.toggle("cards", table.parentElement.scrollWidth > table.parentElement.clientWidth + 1);
    }
  };
  addEventListener("resize", fit);
  fit();
});
