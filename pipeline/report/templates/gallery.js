// Fills each gallery of the page: filters, sorts, and draws what is near the screen.
document.querySelectorAll("section.gallery").forEach((section) => {
  "use strict";
  const content = section.querySelector(".gallery-images");
  if (!content) return;
  const facts = JSON.parse(section.querySelector(".gallery-facts").textContent);
  const images = JSON.parse(content.textContent);
  content.remove();
  const { methods, layers, scores, comparisons } = facts;
  const form = section.querySelector("form");
  const list = section.querySelector(".gallery-list");
  const GOLD = "#ffc02e";
  const PALETTE = ["#35b6ff", "#ff6fae", "#b7e34b", "#b99bff", "#4de3c1", "#ff8a5c", "#f2e05a", "#c9c9c9"];
  const PHOTO_WIDTH = 240;
  const hitKind = scores.findIndex((kind) => kind.is_hit);
  const items = images.flatMap((image) =>
    image.items.map((entry) => ({
      image, entry, label: entry.class || entry.target_name, height: 0, element: null, levels: {},
    })));

  // ---- the controls

  const element = (name, properties = {}, ...children) => {
    const made = Object.assign(document.createElement(name), properties);
    made.append(...children);
    return made;
  };
  const fillSelect = (name, choices, chosen) => {
    const select = form.elements[name];
    for (const [value, text] of choices) {
      select.append(element("option", { value, textContent: text, defaultSelected: value === chosen }));
    }
    if (chosen !== undefined) select.value = chosen;
  };
  const counted = (values) => {
    const counts = new Map();
    for (const value of values) counts.set(value, (counts.get(value) ?? 0) + 1);
    return counts;
  };
  const fillControls = () => {
    if (matchMedia("(max-width: 700px)").matches) form.elements.cell.options[0].defaultSelected = true;
    const classes = [...counted(items.map((item) => item.label))];
    classes.sort(([a, n], [b, m]) => m - n || a.localeCompare(b));
    fillSelect("class", classes.map(([name, count]) => [name, `${name} (${count})`]));
    const roles = counted(items.map((item) => item.entry.role));
    fillSelect("role", [...roles].map(([name, count]) => [name, `${name} (${count})`]));
    fillSelect("variant", facts.variants.map((name) => [name, name]), facts.variants[0]);
    form.elements.variant.closest("label").hidden = facts.variants.length < 2;
    for (const [name, values] of [["method", methods], ["layer", layers]]) {
      const box = form.querySelector(`[data-list="${name}"]`);
      for (const value of values) {
        const tick = element("input", { type: "checkbox", name, value, defaultChecked: true });
        box.append(element("label", {}, tick, ` ${value}`));
      }
    }
    fillSelect("score", scores.map((kind, i) => [String(i), kind.name]), scores.length ? "0" : undefined);
    form.querySelector('[data-needs="scores"]').hidden = !scores.length;
    form.querySelector('[data-needs="hits"]').hidden = hitKind < 0;
    const orders = [["dataset", "as in the dataset"]];
    if (scores.length) {
      orders.unshift(
        ["turns", "worst and best by turns"], ["worst", "score, worst first"], ["best", "score, best first"],
      );
    }
    if (methods.length > 1) orders.push(["disagreement", "disagreement"]);
    comparisons.forEach((kind, i) => {
      orders.push([`high-${i}`, `${kind.name}, highest first`], [`low-${i}`, `${kind.name}, lowest first`]);
    });
    fillSelect("sort", orders, orders[0][0]);
    fillSelect("first", methods.map((name, i) => [String(i), name]), "0");
    fillSelect("second", methods.map((name, i) => [String(i), name]), String(methods.length - 1));
  };
  const choice = () => {
    const value = (name) => form.elements[name].value;
    const ticked = (name) =>
      [...form.querySelectorAll(`input[name="${name}"]`)].flatMap((box, i) => (box.checked ? [i] : []));
    const bound = (name, otherwise) => (value(name) === "" ? otherwise : Number(value(name)));
    const rows = ticked("method");
    const columns = ticked("layer");
    return {
      label: value("class"), role: value("role"), variant: value("variant"), width: Number(value("cell")),
      rows, columns, cells: rows.flatMap((m) => columns.map((l) => m * layers.length + l)),
      score: scores.length ? Number(value("score")) : -1,
      from: bound("from", -Infinity), to: bound("to", Infinity), hits: value("hits"),
      sort: value("sort"), first: Number(value("first")), second: Number(value("second")),
    };
  };

  // ---- which items, in which order

  const mean = (values) => (values.length ? values.reduce((a, b) => a + b) / values.length : NaN);
  const isNumber = (value) => typeof value === "number";
  const scoresOf = (item, kind, chosen) => {
    const of = item.entry.variants[chosen.variant].scores[kind];
    return chosen.cells.map((cell) => of[cell]).filter(isNumber);
  };
  const passes = (item, chosen) => {
    if (!item.entry.variants[chosen.variant]) return false;
    if (chosen.label && item.label !== chosen.label) return false;
    if (chosen.role && item.entry.role !== chosen.role) return false;
    if (chosen.score < 0) return true;
    if (chosen.from > -Infinity || chosen.to < Infinity) {
      const value = mean(scoresOf(item, chosen.score, chosen));
      if (!(value >= chosen.from && value <= chosen.to)) return false;
    }
    if (!chosen.hits || hitKind < 0) return true;
    const hits = scoresOf(item, hitKind, chosen).map((value) => value >= 0.5);
    if (!hits.length) return false;
    if (chosen.hits === "some-hit") return hits.some(Boolean);
    if (chosen.hits === "some-miss") return !hits.every(Boolean);
    return chosen.hits === "all-hit" ? hits.every(Boolean) : !hits.some(Boolean);
  };
  const compared = (item, kind, chosen) => {
    const of = item.image.comparisons[chosen.variant][kind];
    return mean(chosen.cells.map((cell) => of[cell]).filter(isNumber));
  };
  // Average ranks of levels, by counting, less their mean.
  const ranks = (values) => {
    const counts = new Int32Array(256);
    for (const value of values) counts[value] += 1;
    const rank = new Float64Array(256);
    let before = 0;
    for (let level = 0; level < 256; level += 1) {
      rank[level] = before + counts[level] / 2 - values.length / 2;
      before += counts[level];
    }
    return { rank, square: counts.reduce((sum, count, level) => sum + count * rank[level] ** 2, 0) };
  };
  const disagreement = async (item, chosen) => {
    const levels = await levelsOf(item, chosen.variant);
    // One less the rank correlation of the two maps, as a mean over the layers.
    const found = chosen.columns.flatMap((l) => {
      const [a, b] = [chosen.first, chosen.second].map((m) => levels[m * layers.length + l]);
      if (!a || !b) return [];
      const [ofA, ofB] = [ranks(a), ranks(b)];
      let product = 0;
      for (let i = 0; i < a.length; i += 1) product += ofA.rank[a[i]] * ofB.rank[b[i]];
      return ofA.square && ofB.square ? [1 - product / Math.sqrt(ofA.square * ofB.square)] : [];
    });
    return mean(found);
  };
  const ordered = async (shown, chosen) => {
    const [order, kind] = chosen.sort.split("-");
    if (order === "dataset") return [shown, 0];
    let values;
    if (order === "disagreement") values = await Promise.all(shown.map((item) => disagreement(item, chosen)));
    else if (order === "high" || order === "low") values = shown.map((item) => compared(item, Number(kind), chosen));
    else values = shown.map((item) => mean(scoresOf(item, chosen.score, chosen)));
    const lowIsWorst = chosen.score < 0 || scores[chosen.score].better !== "lower";
    const ascending = order === "low" || (order === "best" ? !lowIsWorst : order !== "high"
      && order !== "disagreement" && lowIsWorst);
    const places = shown.map((_, i) => i).filter((i) => !Number.isNaN(values[i]));
    places.sort((i, j) => (ascending ? values[i] - values[j] : values[j] - values[i]) || i - j);
    let sorted = places;
    if (order === "turns") {
      sorted = places.map((_, i) => places[i % 2 ? places.length - 1 - (i - 1) / 2 : i / 2]);
    }
    const undefinedOnes = shown.filter((_, i) => Number.isNaN(values[i]));
    shown.forEach((item, i) => { item.value = values[i]; });
    return [[...sorted.map((i) => shown[i]), ...undefinedOnes], undefinedOnes.length];
  };

  // ---- maps as bytes

  const bytesOf = (base64) => Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  const levelsOf = (item, variant) => {
    item.levels[variant] ??= (async () => {
      const { maps, scales } = item.entry.variants[variant];
      const stream = new Blob([bytesOf(maps)]).stream().pipeThrough(new DecompressionStream("deflate"));
      const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
      let end = 0;
      return scales.map((scale, cell) => {
        if (scale !== "u" && scale !== "s") return null;
        const [, , height, width] = item.entry.sizes[cell % layers.length];
        end += height * width;
        return bytes.subarray(end - height * width, end);
      });
    })();
    return item.levels[variant];
  };
  const photoOf = (image) => {
    image.picture ??= (async () => {
      if (!image.photo) return null;
      const picture = new Image();
      picture.src = image.photo;
      await picture.decode();
      return picture;
    })();
    return image.picture;
  };

  // ---- pixels

  const table = bytesOf(facts.colours);
  const middle = (table.length / 3 - 1) / 2;
  const colour = (index) => table.subarray(3 * index, 3 * index + 3);
  const inks = new Uint32Array(2 * middle + 1).map((_, index) => {
    const [red, green, blue] = colour(index);
    const [least, most] = facts.opacity;
    const opacity = least + (most - least) * Math.abs(index - middle) / middle;
    return (Math.round(255 * opacity) << 24) | (blue << 16) | (green << 8) | red;
  });
  const between = (cells, length) => {
    const before = new Int32Array(length);
    const share = new Float32Array(length);
    for (let i = 0; i < length; i += 1) {
      const at = Math.min(Math.max((i + 0.5) * cells / length - 0.5, 0), cells - 1);
      before[i] = Math.min(Math.floor(at), Math.max(cells - 2, 0));
      share[i] = at - before[i];
    }
    return [before, share];
  };
  const overlay = (levels, height, width, signed, down, across) => {
    const pixels = new Uint32Array(down * across);
    const [rows, downShare] = between(height, down);
    const [columns, acrossShare] = between(width, across);
    const zero = signed ? 128 : 0;
    const scale = middle / (signed ? 127 : 255);
    const below = height > 1 ? width : 0;
    const beside = width > 1 ? 1 : 0;
    for (let y = 0; y < down; y += 1) {
      for (let x = 0; x < across; x += 1) {
        const at = rows[y] * width + columns[x];
        const s = acrossShare[x];
        const above = levels[at] * (1 - s) + levels[at + beside] * s;
        const under = levels[at + below] * (1 - s) + levels[at + below + beside] * s;
        const value = above * (1 - downShare[y]) + under * downShare[y];
        pixels[y * across + x] = inks[Math.round((value - zero) * scale) + middle];
      }
    }
    const canvas = element("canvas", { width: across, height: down });
    const data = new ImageData(new Uint8ClampedArray(pixels.buffer), across, down);
    canvas.getContext("2d").putImageData(data, 0, 0);
    return canvas;
  };
  const greyOf = (picture, width, height) => {
    const canvas = element("canvas", { width, height });
    const pen = canvas.getContext("2d");
    pen.fillStyle = "#e0e0de";
    pen.fillRect(0, 0, width, height);
    if (!picture) return canvas;
    pen.drawImage(picture, 0, 0, width, height);
    pen.globalCompositeOperation = "saturation";
    pen.fillStyle = "#808080";
    pen.fillRect(0, 0, width, height);
    return canvas;
  };
  const outline = (pen, polygons, ink, thick) => {
    const { width, height } = pen.canvas;
    const path = new Path2D();
    for (const corners of polygons) {
      for (let i = 0; i < corners.length; i += 2) {
        const at = [corners[i] * width / facts.steps, corners[i + 1] * height / facts.steps];
        if (i) path.lineTo(...at);
        else path.moveTo(...at);
      }
      path.closePath();
    }
    pen.lineJoin = "round";
    pen.lineWidth = thick + 1.6;
    pen.strokeStyle = "#0009";
    pen.stroke(path);
    pen.lineWidth = thick;
    pen.strokeStyle = ink;
    pen.stroke(path);
  };
  const dot = (pen, [x, y, ties], ratio) => {
    const inside = (place, side) => Math.min(Math.max(place * side / facts.steps, 6 * ratio), side - 6 * ratio);
    const at = [inside(x, pen.canvas.width), inside(y, pen.canvas.height)];
    const ring = (radius, ink, thick) => {
      pen.beginPath();
      pen.arc(...at, radius * ratio, 0, 2 * Math.PI);
      pen.lineWidth = thick * ratio;
      pen.strokeStyle = ink;
      pen.stroke();
    };
    ring(4, "#000", 4);
    ring(4, "#fff", 2);
    if (ties > 1) return;
    pen.beginPath();
    pen.arc(...at, 3.4 * ratio, 0, 2 * Math.PI);
    pen.fillStyle = "#e8112d";
    pen.fill();
  };
  const sized = (canvas, width, height) => {
    const ratio = Math.min(window.devicePixelRatio || 1, 2);
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
    return [canvas.getContext("2d"), ratio];
  };
  const drawMap = (canvas, width, height, item, cell, grey, levels) => {
    const [pen, ratio] = sized(canvas, width, height);
    const [across, down] = [canvas.width, canvas.height];
    const variant = item.entry.variants[current.variant];
    pen.drawImage(grey, 0, 0);
    const [left, top, viewWidth, viewHeight] = item.image.view;
    const [x0, y0] = [Math.round(left * across), Math.round(top * down)];
    const [x1, y1] = [Math.round((left + viewWidth) * across), Math.round((top + viewHeight) * down)];
    pen.fillStyle = `rgb(255 255 255 / ${facts.faded})`;
    const outside = new Path2D();
    outside.rect(0, 0, across, down);
    if (levels) outside.rect(x0, y0, x1 - x0, y1 - y0);
    pen.fill(outside, "evenodd");
    if (!levels) return;
    const [, , rows, columns] = item.entry.sizes[cell % layers.length];
    const signed = variant.scales[cell] === "s";
    pen.drawImage(overlay(levels, rows, columns, signed, Math.max(y1 - y0, 1), Math.max(x1 - x0, 1)), x0, y0);
    const explained = item.image.objects.find(([name]) => name === item.entry.class);
    if (explained) outline(pen, explained[2], GOLD, 1.4 * ratio);
    if (variant.points[cell]) dot(pen, variant.points[cell], ratio);
  };

  // ---- one item

  const number = (value) => (value === null ? "–" : value.toFixed(2));
  const probability = (p) => (p !== null && p < 0.01 ? "p < 0.01" : `p = ${number(p)}`);
  const title = ({ image, entry }) => {
    const target = `${entry.target_name} (${entry.target})`;
    const explained = entry.class && entry.class !== entry.target_name ? `${entry.class} → ${target}` : target;
    return `${image.id}, ${entry.role}: ${explained}`;
  };
  const under = (item, cell) => {
    const variant = item.entry.variants[current.variant];
    const scale = variant.scales[cell];
    const lines = [];
    if (scale !== "u" && scale !== "s") lines.push(element("span", { textContent: scale === "-" ? "no map" : scale }));
    if (current.score >= 0) {
      const value = variant.scores[current.score][cell];
      const classes = variant.classes[current.score];
      if (isNumber(value)) {
        const verdict = { 1: "✓ hit ", 0: "✗ miss " }[value] ?? "◐ partly ";
        const mark = scores[current.score].is_hit && classes === 1 ? verdict : "";
        const over = classes > 1 ? `, ${classes} classes` : "";
        const text = element("span", {}, mark, element("b", { textContent: value.toFixed(2) }), over);
        if (over) text.title = `the mean over ${classes} classes that the map is compared with`;
        lines.push(text);
      } else if (value === "") lines.push(element("span", { textContent: "undefined" }));
    }
    const ties = variant.points[cell]?.[2] ?? 1;
    if (ties > 1) lines.push(element("span", { textContent: `${ties.toLocaleString("en")} px tie` }));
    return lines;
  };
  const legend = (item) => {
    const others = item.image.objects.filter(([name]) => name !== item.entry.class);
    const entries = item.image.objects.map(([name, count]) => {
      const place = others.findIndex(([other]) => other === name);
      const ink = place < 0 ? GOLD : PALETTE[Math.min(place, PALETTE.length - 1)];
      return [name, count, ink];
    });
    const parts = entries.map(([name, count, ink]) => {
      const swatch = element("i");
      swatch.style.background = ink;
      return element("span", {}, swatch, count > 1 ? `${name} × ${count}` : name);
    });
    if (!parts.length && item.image.labels.length) parts.push(`label: ${item.image.labels.join(", ")}`);
    return [entries, parts];
  };
  const drawPhoto = (canvas, item, picture, entries, height) => {
    const [pen, ratio] = sized(canvas, PHOTO_WIDTH, height);
    if (picture) pen.drawImage(picture, 0, 0, canvas.width, canvas.height);
    else pen.drawImage(greyOf(null, canvas.width, canvas.height), 0, 0);
    const inOrder = item.image.objects.map((object, i) => [object, entries[i][2]]);
    inOrder.sort(([a], [b]) => (a[0] === item.entry.class) - (b[0] === item.entry.class));
    for (const [[name, , polygons], ink] of inOrder) {
      outline(pen, polygons, ink, (name === item.entry.class ? 2.2 : 1.4) * ratio);
    }
  };
  const fill = async (item) => {
    const chosen = current;
    const [picture, levels] = await Promise.all([photoOf(item.image), levelsOf(item, chosen.variant)]);
    if (chosen !== current || !item.near) return;
    const [imageWidth, imageHeight] = item.image.size;
    const height = Math.max(8, Math.round(chosen.width * imageHeight / imageWidth));
    const photo = element("canvas");
    photo.setAttribute("role", "img");
    photo.setAttribute("aria-label", picture ? `photo ${item.image.id}` : `photo ${item.image.id}, not there any more`);
    const [entries, parts] = legend(item);
    drawPhoto(photo, item, picture, entries, Math.round(PHOTO_WIDTH * imageHeight / imageWidth));
    const head = element("tr", {}, element("td"));
    for (const l of chosen.columns) {
      const size = item.entry.sizes[l];
      const words = size ? `${size[0]} × ${size[1]}` : "no map";
      head.append(element("th", { scope: "col" }, layers[l], element("br"), words));
    }
    const ratio = Math.min(window.devicePixelRatio || 1, 2);
    const grey = greyOf(picture, Math.round(chosen.width * ratio), Math.round(height * ratio));
    const body = element("tbody");
    for (const m of chosen.rows) {
      const name = element("th", { scope: "row" });
      name.append(...methods[m].split(/(?<=[_:])/).flatMap((part) => [part, element("wbr")]));
      const row = element("tr", {}, name);
      for (const l of chosen.columns) {
        const cell = m * layers.length + l;
        const canvas = element("canvas");
        const lines = under(item, cell);
        canvas.setAttribute("role", "img");
        const said = lines.map((line) => line.textContent).join(", ");
        canvas.setAttribute("aria-label", `${methods[m]} at ${layers[l]}${said && `: ${said}`}`);
        drawMap(canvas, chosen.width, height, item, cell, grey, levels[cell]);
        row.append(element("td", {}, canvas, ...lines));
      }
      body.append(row);
    }
    const maps = element("div", { className: "gallery-maps" },
      element("table", {}, element("thead", {}, head), body));
    const figure = element("figure", {}, photo, element("figcaption", {}, ...parts));
    item.element.querySelector(".gallery-body").replaceChildren(figure, maps);
    item.element.dataset.filled = "";
    item.element.style.minHeight = "";
    if (maps.scrollWidth > maps.clientWidth) {
      maps.tabIndex = 0;
      maps.setAttribute("role", "region");
      maps.setAttribute("aria-label", `maps of ${title(item)}`);
    }
  };
  const empty = (item) => {
    if (item.element.contains(document.activeElement)) return;
    if ("filled" in item.element.dataset) item.height = item.element.offsetHeight;
    reserve(item);
    delete item.element.dataset.filled;
    item.element.querySelector(".gallery-body").replaceChildren();
  };
  const reserve = (item) => {
    const [width, height] = item.image.size;
    const guess = 70 + Math.max(PHOTO_WIDTH * height / width + 30,
      40 + current.rows.length * (current.width * height / width + 24));
    item.element.style.minHeight = `${Math.round(item.height || guess)}px`;
  };
  const shell = (item) => {
    item.element ??= element("article", { className: "gallery-item" },
      element("h3", { textContent: title(item) }), element("p"), element("div", { className: "gallery-body" }));
    const variant = item.entry.variants[current.variant];
    const [top, topProbability] = item.image.top;
    const by = facts.logits_of_base.includes(current.variant) ? ` (${facts.variants[0]})` : "";
    const told = [`logit ${number(variant.logit)}, ${probability(variant.probability)}${by}`,
      `most likely: ${top}, ${probability(topProbability)}`];
    if (current.variant !== facts.variants[0]) told[1] += ` (${facts.variants[0]})`;
    if (current.sort !== "dataset" && item.value !== undefined) {
      const words = form.elements.sort.selectedOptions[0].textContent.split(",")[0];
      const what = ["turns", "worst", "best"].includes(current.sort) ? `mean ${scores[current.score].name}` : words;
      told.push(`${what}: ${Number.isNaN(item.value) ? "undefined" : item.value.toFixed(2)}`);
    }
    item.element.querySelector("p").textContent = told.join(" · ");
    item.height = 0;
    delete item.element.dataset.filled;
    item.element.querySelector(".gallery-body").replaceChildren();
    reserve(item);
    return item.element;
  };

  // ---- what is on the screen

  let current;
  const waiting = new Set();
  let scheduled = false;
  const work = async () => {
    const item = waiting.values().next().value;
    if (item) {
      waiting.delete(item);
      await fill(item);
    }
    scheduled = waiting.size > 0;
    if (scheduled) requestAnimationFrame(work);
  };
  const ofElement = new WeakMap();
  const observer = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      const item = ofElement.get(entry.target);
      item.near = entry.isIntersecting;
      if (item.near) waiting.add(item);
      else {
        waiting.delete(item);
        empty(item);
      }
    }
    if (!scheduled && waiting.size) {
      scheduled = true;
      requestAnimationFrame(work);
    }
  }, { rootMargin: "900px 0px" });
  const plural = (count, one, many) => `${count.toLocaleString("en")} ${count === 1 ? one : many}`;
  const show = async () => {
    const chosen = choice();
    current = chosen;
    form.querySelector('[data-needs="disagreement"]').hidden = chosen.sort !== "disagreement";
    const passing = items.filter((item) => passes(item, chosen));
    const [sorted, withoutValue] = await ordered(passing, chosen);
    if (chosen !== current) return;
    observer.disconnect();
    waiting.clear();
    for (const item of items) item.near = false;
    list.replaceChildren(...sorted.map((item) => {
      const made = shell(item);
      ofElement.set(made, item);
      observer.observe(made);
      return made;
    }));
    const photos = new Set(sorted.map((item) => item.image)).size;
    const told = [`Showing ${plural(sorted.length, "explained class", "explained classes")} of `
      + `${plural(photos, "photo", "photos")}, of ${items.length.toLocaleString("en")} in all.`];
    if (withoutValue) told.push(`${withoutValue.toLocaleString("en")} without a value to sort by stand last.`);
    if (!chosen.cells.length) told.push("No method or no layer is ticked.");
    section.querySelector(".gallery-status").textContent = told.join(" ");
  };
  const drawScales = () => {
    const [unsigned, signed] = section.querySelectorAll(".gallery-scales canvas");
    for (const [canvas, from] of [[unsigned, middle], [signed, 0]]) {
      const pen = canvas.getContext("2d");
      for (let x = 0; x < canvas.width; x += 1) {
        pen.fillStyle = `rgb(${colour(Math.round(from + (2 * middle - from) * x / (canvas.width - 1))).join(" ")})`;
        pen.fillRect(x, 0, 1, canvas.height);
      }
    }
  };
  fillControls();
  drawScales();
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", show);
  form.addEventListener("reset", () => setTimeout(show));
  window.addEventListener("beforeprint", () => {
    // In print other cards are near each other; what is filled now is what is printed.
    observer.disconnect();
    waiting.clear();
    const filled = list.querySelectorAll("[data-filled]").length;
    section.querySelector(".gallery-printed").textContent =
      `Printed: ${filled} of ${plural(list.children.length, "explained class", "explained classes")}, `
      + "around the place on the screen.";
  });
  window.addEventListener("afterprint", () => {
    for (const card of list.children) observer.observe(card);
  });
  show();
});
