// Tables with a head of one row are sorted by a click on a column's name; every table scrolls by itself.
for (const table of document.querySelectorAll("main table")) {
  const scroll = document.createElement("div");
  scroll.className = "scroll";
  scroll.tabIndex = 0;
  scroll.role = "region";
  scroll.ariaLabel = "table";
  table.replaceWith(scroll);
  scroll.append(table);
  for (const cell of table.querySelectorAll("tbody td")) {
    if (/^[-+\u2212]?\d[\d,.]*\s*(%|\(.*\).*)?$/.test(cell.textContent.trim())) cell.classList.add("number");
  }
  const rows = table.tHead ? [...table.tHead.rows] : [];
  const isSimple = rows.length === 1 && ![...table.tBodies[0].rows].some(row => [...row.cells].some(cell => cell.rowSpan > 1));
  if (!isSimple) continue;
  [...rows[0].cells].forEach((head, column) => {
    if (!head.textContent.trim()) return;
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const ascending = head.ariaSort !== "ascending";
      for (const other of rows[0].cells) other.removeAttribute("aria-sort");
      head.ariaSort = ascending ? "ascending" : "descending";
      const value = row => {
        const text = row.cells[column].textContent.trim().replace("\u2212", "-");
        const number = parseFloat(text.replace(/,(?=\d{3})/g, ""));
        return Number.isNaN(number) ? text : number;
      };
      const sorted = [...table.tBodies[0].rows].sort((a, b) => {
        const [x, y] = [value(a), value(b)];
        const order = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y));
        return ascending ? order : -order;
      });
      table.tBodies[0].append(...sorted);
    });
  });
}
