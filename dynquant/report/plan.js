// The grid is one tab stop; arrow keys move between its cells. Without this script, each cell is a
// tab stop, and its tooltip is shown in the same way.
const rows = [...document.querySelectorAll(".grid tbody tr")]
  .map((row) => [...row.querySelectorAll(".c")]).filter((row) => row.length);
const cells = rows.flat();
cells.forEach((cell, i) => { cell.tabIndex = i ? -1 : 0; });
const middle = (cell) => cell.getBoundingClientRect().left + cell.offsetWidth / 2;

function beside(cell, key) {
  const step = key === "ArrowRight" || key === "ArrowDown" ? 1 : -1;
  if (key === "ArrowRight" || key === "ArrowLeft") return cells[cells.indexOf(cell) + step];
  const row = rows[rows.findIndex((r) => r.includes(cell)) + step] ?? [];
  const away = (other) => Math.abs(middle(other) - middle(cell));
  return row.reduce((best, other) => (!best || away(other) < away(best) ? other : best), null);
}

// Open a tooltip on the side where the window has room for it.
function place(cell) {
  cell.classList.remove("up", "left");
  const tip = cell.querySelector(".tip").getBoundingClientRect();
  cell.classList.toggle("up", tip.bottom > window.innerHeight);
  cell.classList.toggle("left", tip.right > document.documentElement.clientWidth);
}

document.addEventListener("mouseover", (event) => {
  const cell = event.target.closest(".c");
  if (cell) place(cell);
});
document.addEventListener("focusin", (event) => {
  if (!event.target.matches(".c")) return;
  cells.forEach((cell) => { cell.tabIndex = -1; });
  event.target.tabIndex = 0;
  place(event.target);
});
document.addEventListener("keydown", (event) => {
  if (!event.target.matches(".c") || !event.key.startsWith("Arrow")) return;
  const next = beside(event.target, event.key);
  if (!next) return;
  event.preventDefault();
  next.focus();
});
