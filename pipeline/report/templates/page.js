(() => {
  "use strict";
  const page = JSON.parse(document.getElementById("page-data").textContent);
  const element = (name, attributes = {}, ...children) => {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  };

  // Rows: a column is a list, or its distinct texts and the index of each row's text.
  const known = {};
  const rowsOf = (name) => (known[name] ??= expanded(page.rows[name]));
  function expanded(columns) {
    const names = Object.keys(columns);
    const lists = names.map((name) => {
      const column = columns[name];
      return Array.isArray(column) ? column : column.at.map((i) => column.names[i]);
    });
    return lists[0].map((_, i) => Object.fromEntries(names.map((name, k) => [name, lists[k][i]])));
  }

  // Dark mode
  const root = document.documentElement;
  const toggle = document.getElementById("theme");
  const prefersDark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme || (prefersDark.matches ? "dark" : "light")) === "dark";
  const showTheme = () => toggle.setAttribute("aria-pressed", String(isDark()));
  toggle.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    try { localStorage.setItem("theme", root.dataset.theme); } catch { /* no storage */ }
    showTheme();
  });
  prefersDark.addEventListener("change", showTheme);
  showTheme();

  // Plots
  const legend = document.getElementById("legend") ?? element("div");
  const boxes = [...legend.querySelectorAll("input")];
  const shown = () => boxes.filter((box) => box.checked).map((box) => box.value);
  for (const path of legend.querySelectorAll("[data-shape]")) {
    path.setAttribute("d", symbolPath(path.dataset.shape));
  }
  const PANEL = 270; // pixels of a panel of a plot that is repeated, at least
  const LEAST = 80; // pixels between the axes
  const ERRORS = 1; // the level of Vega's log at which it does not warn of a plot without points
  const figures = page.plots.map(figureOf);
  const refresh = () => figures.forEach((show) => show());
  legend.addEventListener("change", refresh);
  for (const button of legend.querySelectorAll("button")) {
    button.addEventListener("click", () => {
      for (const box of boxes) box.checked = Boolean(button.dataset.all);
      refresh();
    });
  }

  function figureOf(plot) {
    const section = document.getElementById(plot.name);
    const stage = section.querySelector(".stage");
    const frame = stage.parentElement;
    const controls = section.querySelector(".controls");
    const selects = new Map();
    let view = null;
    let drawnWidth = 0;
    let columns;
    for (const control of plot.controls) {
      const select = element("select");
      const label = element("label", {}, control.label, select);
      selects.set(control.signal, { control, select, label });
      select.addEventListener("change", () => { fill(control.signal); show(); });
      controls.append(label);
    }
    function fill(changed) {
      // The choices of a control depend on another's; those before it are filled already.
      let isBelow = changed === undefined;
      for (const [signal, { control, select, label }] of selects) {
        if (signal === changed) { isBelow = true; continue; }
        if (!isBelow) continue;
        const options = control.depends
          ? control.options[selects.get(control.depends).select.value] ?? []
          : control.options;
        const before = select.value;
        select.replaceChildren(...options.map((option) => element("option", { value: option }, option || "–")));
        if (options.includes(before)) select.value = before;
        label.hidden = options.length < 2;
      }
      controls.hidden = [...selects.values()].every(({ label }) => label.hidden);
    }
    async function draw() {
      drawnWidth = frame.clientWidth;
      const spec = structuredClone(plot.spec);
      if (spec.facet) {
        columns = spec.columns = Math.max(1, Math.min(spec.columns, Math.floor(drawnWidth / PANEL)));
        spec.spec.width = Math.floor(drawnWidth / columns) - 60;
      } else {
        spec.width = drawnWidth - 60;
      }
      // Vega marks the rows that it is given, so that each plot needs its own.
      spec.datasets = { [plot.rows]: rowsOf(plot.rows).map((row) => ({ ...row })) };
      for (const param of spec.params) {
        param.value = param.name === "shown" ? shown() : selects.get(param.name).select.value;
      }
      const drawn = await vegaEmbed(stage, spec, { renderer: "svg", actions: false, logLevel: ERRORS });
      view?.finalize();
      view = drawn.view;
      await settle();
    }
    async function show() {
      if (!view) return;
      for (const [signal, { select }] of selects) view.signal(signal, select.value);
      await view.signal("shown", shown()).runAsync();
      await settle();
    }
    // The room for the names at the sides depends on what is shown, and on the width itself.
    async function settle() {
      const name = plot.spec.facet ? "child_width" : "width";
      for (let tries = 0; tries < 3; tries++) {
        const excess = Math.ceil(stage.querySelector("svg").clientWidth - frame.clientWidth);
        const width = view.signal(name) - Math.ceil(excess / (columns ?? 1));
        if (!excess || width < LEAST || width === view.signal(name)) return;
        await view.signal(name, width).resize().runAsync();
      }
    }
    fill();
    draw();
    new ResizeObserver(() => { if (Math.abs(frame.clientWidth - drawnWidth) > 8) draw(); }).observe(frame);
    return show;
  }

  function symbolPath(shape) {
    const paths = {
      circle: "M-6,0a6,6,0,1,0,12,0a6,6,0,1,0,-12,0Z",
      square: "M-5,-5H5V5H-5Z",
      cross: "M-6,-2H-2V-6H2V-2H6V2H2V6H-2V2H-6Z",
      diamond: "M0,-7L7,0L0,7L-7,0Z",
      "triangle-up": "M0,-6L6,5H-6Z",
      "triangle-down": "M0,6L6,-5H-6Z",
      "triangle-right": "M6,0L-5,6V-6Z",
      "triangle-left": "M-6,0L5,6V-6Z",
    };
    return paths[shape];
  }

  // Paper has room for what is folded
  let folded = [];
  addEventListener("beforeprint", () => {
    folded = [...document.querySelectorAll("details:not([open])")];
    for (const each of folded) each.open = true;
  });
  addEventListener("afterprint", () => { for (const each of folded) each.open = false; });

  // Tables
  const PAGE = 50;
  const MOST_CHOICES = 60;
  function inDigits(value) {
    if (value === null) return "–";
    return value && Math.abs(value) < 1e-4
      ? value.toExponential(1)
      : value.toLocaleString("en", { maximumSignificantDigits: 4 });
  }
  const inOrder = (a, b) =>
    typeof a === "number" ? a - b : a.localeCompare(b, undefined, { numeric: true });
  const headOf = (title, isNumber) => element(
    "th", { scope: "col", "aria-sort": "none", ...(isNumber ? { class: "number" } : {}) },
    element("button", { type: "button" }, title));
  function markSorted(heads, sorted, isDescending) {
    for (const head of heads) head.setAttribute("aria-sort", "none");
    sorted.setAttribute("aria-sort", isDescending ? "descending" : "ascending");
  }
  const isSortedUp = (head) => head.getAttribute("aria-sort") === "ascending";

  function tableOf(table) {
    const section = document.getElementById(`table-${table.rows}`);
    const rows = rowsOf(table.rows);
    const distinct = (name) => [...new Set(rows.map((row) => row[name]))];
    const fixed = table.columns.filter((column) => !column.is_number && distinct(column.name).length === 1);
    const columns = table.columns.filter((column) => !fixed.includes(column));
    const same = fixed.map((column) => [column.title, rows[0][column.name]]).filter(([, value]) => value);
    if (same.length) {
      section.append(element("p", { class: "status" },
        `The same in all rows: ${same.map(([name, value]) => `${name} ${value}`).join(", ")}.`));
    }
    const choices = new Map();
    const search = element("input", { type: "search" });
    const controls = element("div", { class: "controls", role: "group", "aria-label": `${table.title}: filters` });
    for (const column of columns.filter((each) => !each.is_number)) {
      const values = distinct(column.name);
      if (values.length > MOST_CHOICES) continue;
      const select = element("select", {}, element("option", { value: "" }, "all"));
      values.forEach((value, i) => select.append(element("option", { value: String(i + 1) }, value || "–")));
      choices.set(column.name, { select, values });
      controls.append(element("label", {}, column.title, select));
    }
    controls.append(element("label", {}, "Any name with", search));
    const status = element("span", { role: "status" });
    const heads = columns.map((column) => headOf(column.title, column.is_number));
    const body = element("tbody");
    const [before, after] = ["Previous", "Next"].map((text) => element("button", { type: "button" }, text));
    section.append(
      controls,
      element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": table.title },
        element("table", {}, element("thead", {}, element("tr", {}, ...heads)), body)),
      element("div", { class: "pager" }, before, after, status));
    let found = rows;
    let start = 0;
    function filter() {
      const words = search.value.trim().toLowerCase();
      const texts = columns.filter((column) => !column.is_number).map((column) => column.name);
      found = rows.filter((row) =>
        [...choices].every(([name, { select, values }]) => !select.value || row[name] === values[select.value - 1])
        && (!words || texts.some((name) => row[name].toLowerCase().includes(words))));
      sort();
    }
    function sort() {
      const i = heads.findIndex((head) => head.getAttribute("aria-sort") !== "none");
      if (i >= 0) {
        const { name } = columns[i];
        const sign = isSortedUp(heads[i]) ? 1 : -1;
        found = [...found].sort((a, b) =>
          a[name] === null || b[name] === null
            ? (a[name] === null) - (b[name] === null)
            : sign * inOrder(a[name], b[name]));
      }
      start = 0;
      show();
    }
    function show() {
      const some = found.slice(start, start + PAGE);
      body.replaceChildren(...some.map((row) => element("tr", {}, ...columns.map((column) => {
        const value = row[column.name];
        return element("td", column.is_number ? { class: "number" } : {}, column.is_number ? inDigits(value) : value);
      }))));
      before.disabled = start === 0;
      after.disabled = start + PAGE >= found.length;
      const number = (each) => each.toLocaleString("en");
      status.textContent = found.length
        ? `Rows ${number(start + 1)} to ${number(start + some.length)} of ${number(found.length)}`
          + (found.length < rows.length ? `, filtered from ${number(rows.length)}` : "")
        : "No row passes the filters";
    }
    controls.addEventListener("input", filter);
    heads.forEach((head) => head.firstChild.addEventListener("click", () => {
      markSorted(heads, head, isSortedUp(head));
      sort();
    }));
    before.addEventListener("click", () => { start -= PAGE; show(); });
    after.addEventListener("click", () => { start += PAGE; show(); });
    show();
  }
  page.tables.forEach(tableOf);

  // The small tables, which are there without this script
  for (const table of document.querySelectorAll("[data-sortable]")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, i) => head.firstChild.addEventListener("click", () => {
      markSorted(heads, head, isSortedUp(head));
      const sign = isSortedUp(head) ? 1 : -1;
      const value = (row) => (i ? Number(row.cells[i].dataset.value) : row.cells[0].textContent);
      const rows = [...table.tBodies[0].rows].sort((a, b) => {
        const [one, other] = [value(a), value(b)];
        if (Number.isNaN(one) || Number.isNaN(other)) return Number.isNaN(one) - Number.isNaN(other);
        return sign * inOrder(one, other);
      });
      table.tBodies[0].append(...rows);
    }));
  }
})();
