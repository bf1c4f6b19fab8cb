// The tables of docs/leaderboard.md: heads that sort, by mouse and by keyboard, and a plot of UA against integrity above each.
(() => {
  const LOWER_IS_BETTER = /^(FID|seconds|trained|text_states|detected|CLIPScore on forget)/, LOWEST = -2;
  const WIDTH = Math.max(300, Math.min(640, document.querySelector("article")?.clientWidth || 640)), HEIGHT = 360, LEFT = 44, RIGHT = 12, TOP = 10, BOTTOM = 40;
  const number = (cell) => parseFloat(cell.textContent.replaceAll(",", ""));
  const element = (name, attributes, text) => {
    const one = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) one.setAttribute(key, value);
    if (text !== undefined) one.textContent = text;
    return one;
  };

  function sortable(table) {
    const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
    heads.forEach((head, column) => {
      const button = document.createElement("button"), name = head.textContent;
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const first = column === 0 || LOWER_IS_BETTER.test(name) ? "ascending" : "descending";
        const other = first === "ascending" ? "descending" : "ascending";
        const order = head.getAttribute("aria-sort") === first ? other : first, sign = order === "ascending" ? 1 : -1;
        heads.forEach((one) => one.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", order);
        const compare = (a, b) => {
          const [x, y] = [number(a.cells[column]), number(b.cells[column])];
          if (column === 0) return sign * a.cells[0].textContent.localeCompare(b.cells[0].textContent, "en");
          return isNaN(x) - isNaN(y) || sign * (x - y || 0);
        };
        body.append(...[...body.rows].sort(compare));
      });
    });
  }

  function plot(table, x, y) {
    const figure = document.createElement("figure"), said = document.createElement("output");
    figure.className = "leaderboard-plot";
    const svg = element("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "group", "aria-label": "UA against integrity" });
    const rows = [...table.tBodies[0].rows].filter((row) => !isNaN(number(row.cells[x])) && !isNaN(number(row.cells[y])));
    const low = Math.min(0, Math.max(LOWEST, ...[Math.min(...rows.map((row) => number(row.cells[y])))])) - 0.06;
    const across = (value) => LEFT + value * (WIDTH - LEFT - RIGHT);
    const down = (value) => TOP + ((1.06 - Math.max(value, low)) / (1.06 - low)) * (HEIGHT - TOP - BOTTOM);
    for (let tick = Math.ceil(low * 2) / 2; tick <= 1; tick += 0.5) {
      svg.append(element("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: down(tick), y2: down(tick) }));
      svg.append(element("text", { x: LEFT - 6, y: down(tick) + 3, "text-anchor": "end" }, tick.toFixed(1)));
    }
    for (const tick of [0, 0.25, 0.5, 0.75, 1]) {
      svg.append(element("line", { x1: across(tick), x2: across(tick), y1: TOP, y2: HEIGHT - BOTTOM }));
      svg.append(element("text", { x: across(tick), y: HEIGHT - BOTTOM + 14, "text-anchor": "middle" }, tick));
    }
    svg.append(element("text", { x: WIDTH - RIGHT, y: HEIGHT - 8, "text-anchor": "end" }, "UA →"));
    svg.append(element("text", { x: LEFT, y: HEIGHT - 8 }, "↑ integrity"));
    const marks = new Map();
    const boxes = rows.map((row) => [across(number(row.cells[x])), down(number(row.cells[y]))]).map(([a, b]) => [a - 4, b - 4, a + 4, b + 4]);
    const show = (row) => {
      for (const [other, mark] of marks) [other, mark].forEach((one) => one.classList.toggle("on", other === row));
      const heads = [...table.tHead.rows[0].cells].map((head) => head.textContent);
      said.value = row ? [...row.cells].slice(0, 8).map((cell, i) => (i ? `${heads[i]} ${cell.textContent}` : cell.textContent)).join(" · ") : "";
    };
    for (const row of rows) {
      const name = row.cells[0].textContent, [cx, cy] = [across(number(row.cells[x])), down(number(row.cells[y]))];
      const mark = element("g", {}), left = cx > WIDTH - 110, width = 5.6 * name.length;
      const box = [left ? cx - 8 - width : cx + 8, cy - 6, left ? cx - 8 : cx + 8 + width, cy + 5];
      const overlaps = boxes.some((one) => one[0] < box[2] && box[0] < one[2] && one[1] < box[3] && box[1] < one[3]);
      if (overlaps) mark.classList.add("hidden");
      else boxes.push(box);
      mark.append(element("circle", { cx, cy, r: 5, tabindex: 0, role: "img", "aria-label": `${name}: UA ${row.cells[x].textContent}, integrity ${row.cells[y].textContent}` }));
      mark.append(element("text", { class: "name", x: left ? cx - 8 : cx + 8, y: cy + 3, "text-anchor": left ? "end" : "start" }, name));
      marks.set(row, mark);
      for (const one of [mark, row]) {
        one.addEventListener("pointerenter", () => show(row));
        one.addEventListener("focusin", () => show(row));
      }
      mark.addEventListener("click", () => row.scrollIntoView({ block: "center", behavior: "smooth" }));
      svg.append(mark);
    }
    figure.append(svg, said);
    (table.closest(".md-typeset__scrollwrap") || table).before(figure);
  }

  for (const table of document.querySelectorAll("article table")) {
    const heads = table.tHead ? [...table.tHead.rows[0].cells].map((head) => head.textContent.trim()) : [];
    const x = heads.indexOf("UA"), y = heads.indexOf("integrity");
    if (heads[0] !== "algorithm" || x < 0 || y < 0) continue;
    table.dataset.leaderboard = "";
    plot(table, x, y);
    sortable(table);
  }
})();
