"use strict";
// Sorts and filters the table of layers. Without a script all rows are shown, the noisiest first.
(function () {
  const table = document.getElementById("rows");
  if (!table) return;
  const rows = Array.from(table.tBodies, body => ({
    body,
    text: body.textContent.toLowerCase(),
    differs: body.dataset.differs === "1",
    place: Number(body.dataset.place),
    name: body.dataset.name,
    noise: body.dataset.noise.split(" ").map(value => value === "" ? Infinity : Number(value)),
  }));
  const [find, differing, order, count] = ["find", "differing", "order", "count"].map(id => document.getElementById(id));

  function key(row) {
    if (order.value === "place") return row.place;
    return order.value === "worst" ? Math.min(...row.noise) : row.noise[Number(order.value)];
  }

  function show() {
    const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    rows.sort((a, b) => order.value === "name" ? a.name.localeCompare(b.name) : key(a) - key(b) || a.place - b.place);
    for (const row of rows) {
      row.body.hidden = (differing.checked && !row.differs) || !words.every(word => row.text.includes(word));
      shown += row.body.hidden ? 0 : 1;
      table.append(row.body);
    }
    count.textContent = `${shown} of ${rows.length} layer inputs`;
  }

  document.getElementById("controls").hidden = false;
  document.getElementById("controls").addEventListener("submit", event => event.preventDefault());
  for (const control of [find, differing, order]) control.addEventListener("input", show);
  differing.checked = rows.some(row => row.differs);
  show();
}());
