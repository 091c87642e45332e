// What the page adds for those who have a pointer or a keyboard: sorting, values on the curves, other axes, one
// architecture brought forward, a dark or light paper. Reads one JSON block; text enters the page by textContent only.
(() => {
  "use strict";
  const data = JSON.parse(document.getElementById("data").textContent);
  const SVG = document.querySelector("svg").namespaceURI;
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const make = (name, className, text) => {
    const node = document.createElement(name);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const draw = (name, attributes, parent) => {
    const node = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) if (value !== null) node.setAttribute(key, value);
    if (parent) parent.append(node);
    return node;
  };
  const frameOf = (svg) => {
    const [x0, y0, x1, y1] = svg.dataset.frame.split(" ").map(Number);
    return { x0, y0, x1, y1 };
  };
  const hue = (index) => index % data.hues;

  // ---- one architecture brought forward, in every picture at once
  let pinned = null;
  const bring = (index) => {
    document.body.classList.toggle("dim", index !== null);
    for (const node of all(".hot")) node.classList.remove("hot");
    if (index !== null) for (const node of all(`[data-s="${index}"]`)) node.classList.add("hot");
    for (const chip of all("[data-chip]")) chip.setAttribute("aria-pressed", String(pinned !== null && +chip.dataset.chip === pinned));
  };
  for (const list of all(".chips")) {
    list.hidden = false;
    list.addEventListener("click", (event) => {
      const chip = event.target.closest("[data-chip]");
      if (!chip) return;
      pinned = pinned === +chip.dataset.chip ? null : +chip.dataset.chip;
      bring(pinned);
    });
  }
  for (const canvas of all(".canvas")) {
    canvas.addEventListener("pointerover", (event) => {
      const series = event.target.closest("[data-s]");
      if (event.pointerType !== "touch") bring(series ? +series.dataset.s : pinned);
    });
    canvas.addEventListener("pointerleave", () => bring(pinned));
  }

  // ---- values on the curves: pointer, touch, or arrow keys
  const tipOf = (canvas) => {
    let tip = canvas.querySelector(".tip");
    if (!tip) {
      tip = make("div", "tip");
      tip.setAttribute("role", "status");
      tip.hidden = true;
      canvas.append(tip);
    }
    return tip;
  };
  const moveTip = (canvas, svg, tip, x, y) => {
    const scale = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
    const room = canvas.clientWidth;
    tip.hidden = false;
    const left = x * scale + 16 + tip.offsetWidth > room ? x * scale - tip.offsetWidth - 16 : x * scale + 16;
    tip.style.left = `${Math.max(0, Math.min(left, room - tip.offsetWidth))}px`;
    tip.style.top = `${Math.max(0, y * scale)}px`;
  };
  const readCurves = (svg, panel) => {
    const canvas = svg.parentElement, frame = frameOf(svg), tip = tipOf(canvas);
    const stops = [...new Set(panel.rows.flatMap((row) => row.points.map((point) => point[0])))].sort((a, b) => a - b);
    let layer = null, at = stops.length - 1;
    const hide = () => { if (layer) layer.remove(); layer = null; tip.hidden = true; };
    const show = (place) => {
      hide();
      layer = draw("g", { class: "hover" }, svg);
      const x = frame.x0 + place * (frame.x1 - frame.x0);
      draw("path", { class: "rule", d: `M${x} ${frame.y0}V${frame.y1}` }, layer);
      const found = [];
      for (const row of panel.rows) {
        const near = row.points.reduce((a, b) => (Math.abs(b[0] - place) < Math.abs(a[0] - place) ? b : a));
        if (Math.abs(near[0] - place) > 0.03) continue;
        found.push({ row, near });
        if (near[1] >= 0 && near[1] <= 1)
          draw("circle", { class: `dot s${hue(row.s)}`, r: 4, cx: frame.x0 + near[0] * (frame.x1 - frame.x0), cy: frame.y1 - near[1] * (frame.y1 - frame.y0) }, layer);
      }
      found.sort((a, b) => b.near[1] - a.near[1]);
      tip.replaceChildren(make("b", "", found.length ? `${found[0].near[2]} ${panel.unit}` : ""));
      for (const { row, near } of found) {
        const line = make("span");
        line.append(make("i", "", data.names[row.s]), make("i", "", near[3]));
        tip.append(line);
      }
      moveTip(canvas, svg, tip, x, frame.y0);
    };
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const x = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
      const place = (x - frame.x0) / (frame.x1 - frame.x0);
      if (place < -0.02 || place > 1.02) return hide();
      at = stops.reduce((best, stop, k) => (Math.abs(stop - place) < Math.abs(stops[best] - place) ? k : best), 0);
      show(stops[at]);
    });
    svg.addEventListener("pointerleave", hide);
    svg.setAttribute("tabindex", "0");
    svg.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1, Home: -stops.length, End: stops.length }[event.key];
      if (event.key === "Escape") hide();
      if (step === undefined) return;
      event.preventDefault();
      at = Math.max(0, Math.min(stops.length - 1, at + step));
      show(stops[at]);
    });
    svg.addEventListener("blur", hide);
  };
  for (const svg of all(".chart")) {
    const panel = data.panels[svg.dataset.chart];
    if (panel && panel.rows.length) readCurves(svg, panel);
  }

  // ---- quality against any cost, or any cost against another
  const front = (points, better) => {
    const sign = better.map((side) => (side === "low" ? 1 : -1));
    return points.map((p, i) => !points.some((q, j) => i !== j && [0, 1].every((k) => sign[k] * q[k] <= sign[k] * p[k]) && [0, 1].some((k) => q[k] !== p[k])));
  };
  const stairs = (points, better, frame) => {
    const right = better[0] === "high";
    const sorted = [...points].sort((a, b) => (right ? b[0] - a[0] : a[0] - b[0]));
    const path = [[sorted[0][0], better[1] === "low" ? frame.y0 : frame.y1]];
    sorted.forEach((point, k) => { path.push(point); if (sorted[k + 1]) path.push([sorted[k + 1][0], point[1]]); });
    path.push([right ? frame.x0 : frame.x1, sorted[sorted.length - 1][1]]);
    return `M${path.map((p) => p.join(" ")).join("L")}`;
  };
  const area = (a, b) => Math.max(0, Math.min(a[2], b[2]) - Math.max(a[0], b[0])) * Math.max(0, Math.min(a[3], b[3]) - Math.max(a[1], b[1]));
  const placeLabels = (points, sizes, frame) => {
    const marks = points.map(([x, y]) => [x - 6, y - 6, x + 6, y + 6]);
    const spots = [0, 1, 2].flatMap((far) => [[1, 0, "start"], [-1, 0, "end"], [0, -1, "middle"], [0, 1, "middle"], [0.8, -0.9, "start"], [0.8, 0.9, "start"], [-0.8, -0.9, "end"], [-0.8, 0.9, "end"]]
      .filter((spot) => spot[1] || !far).map((spot) => [...spot, far]));
    const out = [], taken = [];
    for (let round = 0; round < 3; round++)
      points.forEach(([x, y], i) => {
        const [w, h] = sizes[i];
        let best = Infinity;
        taken[i] = null;
        spots.forEach(([dx, dy, anchor, far], rank) => {
          const ax = x + dx * 10, ay = y + dy * (10 + h / 2 + far * h);
          const left = anchor === "start" ? ax : anchor === "end" ? ax - w : ax - w / 2;
          const box = [left, ay - h / 2, left + w, ay + h / 2];
          let price = rank * 4 + 40 * (Math.max(0, frame.x0 - box[0]) + Math.max(0, frame.y0 - box[1]) + Math.max(0, box[2] - frame.x1) + Math.max(0, box[3] - frame.y1));
          taken.forEach((other) => { if (other) price += area(box, other); });
          marks.forEach((other) => { price += 1.5 * area(box, other); });
          if (price < best) { best = price; out[i] = [ax, ay, anchor, box]; }
        });
        taken[i] = out[i][3];
      });
    return out;
  };
  const scatter = (svg, x, y) => {
    const frame = frameOf(svg), narrow = svg.classList.contains("narrow"), size = narrow ? 12 : 13;
    const plot = svg.querySelector(".plot");
    plot.replaceChildren();
    const px = (place) => frame.x0 + place * (frame.x1 - frame.x0), py = (place) => frame.y1 - place * (frame.y1 - frame.y0);
    const text = (left, top, content, className, anchor) => {
      const node = draw("text", { x: left, y: top, class: className, "text-anchor": anchor || "start" }, plot);
      node.textContent = content;
      return node;
    };
    text(0, 14, y.title, "axis-title");
    for (const [place, label] of y.ticks) {
      draw("path", { class: "grid", d: `M${frame.x0} ${py(place)}H${frame.x1}` }, plot);
      text(frame.x0 - 8, py(place) + size * 0.35, label, "tick", "end");
    }
    draw("path", { class: "base", d: `M${frame.x0} ${frame.y1}H${frame.x1}` }, plot);
    let end = -Infinity;
    for (const [place, label] of x.ticks) {
      const half = label.length * size * 0.3;
      if (px(place) - half <= end) continue;
      text(px(place), frame.y1 + 18, label, "tick", "middle");
      end = px(place) + half + 6;
    }
    text((frame.x0 + frame.x1) / 2, frame.y1 + 37, x.title, "axis-title", "middle");
    const shown = Object.keys(x.places).filter((s) => s in y.places);
    if (!shown.length) return void text((frame.x0 + frame.x1) / 2, (frame.y0 + frame.y1) / 2, "no architecture has both numbers", "quiet", "middle");
    const points = shown.map((s) => [px(x.places[s]), py(y.places[s])]);
    const best = front(shown.map((s) => [x.places[s], y.places[s]]), [x.better, y.better]);
    draw("path", { class: "front", d: stairs(points.filter((_, i) => best[i]), [x.better, y.better], frame) }, plot);
    const shorten = (name) => { const limit = narrow ? 15 : 30; return name.length <= limit ? name : `${name.slice(0, limit - 6)}\u2026${name.slice(-5)}`; };
    const names = shown.map((s) => shorten(data.names[s]));
    const labels = placeLabels(points, names.map((name) => [name.length * size * 0.54, size]), frame);
    shown.forEach((s, i) => {
      const group = draw("g", { class: `series s${hue(+s)}`, "data-s": s }, plot);
      if (y.ends[s]) draw("path", { class: "bar", d: `M${points[i][0]} ${py(y.ends[s][0])}V${py(y.ends[s][1])}` }, group);
      if (x.ends[s]) draw("path", { class: "bar", d: `M${px(x.ends[s][0])} ${points[i][1]}H${px(x.ends[s][1])}` }, group);
      const dot = draw("path", { class: `mark s${hue(+s)}${data.marks[s].filled ? "" : " hollow"}`, d: data.marks[s].path, transform: `translate(${points[i]})`, "data-s": s }, group);
      draw("title", {}, dot).textContent = `${data.names[s]}: ${x.texts[s]}, ${y.texts[s]}`;
      const node = draw("text", { x: labels[i][0], y: labels[i][1] + size * 0.35, class: `name halo${best[i] ? "" : " quiet"}`, "text-anchor": labels[i][2], "data-s": s }, group);
      node.textContent = names[i];
    });
    svg.setAttribute("aria-label", `${y.title} against ${x.title}, one mark per architecture. ${shown.map((s) => `${data.names[s]}: ${x.texts[s]}, ${y.texts[s]}`).join("; ")}.`);
  };
  for (const box of all("[data-axes]")) {
    const canvas = box.closest("figure").querySelector(".canvas");
    const select = (name, key) => {
      const label = make("label"), list = make("select");
      label.append(make("span", "", name));
      for (const axis of data.axes) {
        const option = make("option", "", axis.name);
        option.value = axis.key;
        list.append(option);
      }
      list.value = key;
      label.append(list);
      box.append(label);
      return list;
    };
    const across = select("across", data.scatter.x), up = select("up", data.scatter.y);
    const axis = (key) => data.axes.find((one) => one.key === key);
    const redraw = () => { for (const svg of all(".chart", canvas)) scatter(svg, axis(across.value), axis(up.value)); bring(pinned); };
    across.addEventListener("change", redraw);
    up.addEventListener("change", redraw);
    box.hidden = false;
  }

  // ---- sorting
  const table = document.getElementById("main");
  if (table) {
    const heads = all("thead th", table), body = table.tBodies[0];
    const value = (row, column) => { const cell = row.cells[column].dataset.value; return cell === undefined ? null : +cell; };
    heads.forEach((head, column) => {
      if (head.dataset.kind === "picture") return;
      const button = make("button", "", head.firstChild.textContent);
      button.type = "button";
      button.title = "Sort by this column";
      head.firstChild.replaceWith(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        for (const other of heads) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const rows = [...body.rows].sort((a, b) => {
          const x = value(a, column), y = value(b, column);
          if (x === null || y === null) return (x === null) - (y === null);
          return down ? y - x : x - y;
        });
        body.append(...rows);
      });
    });
  }

  // ---- paper, copying, printing
  const root = document.documentElement;
  const themes = ["auto", "light", "dark"], asked = new URLSearchParams(location.search).get("theme");
  const button = make("button", "plain theme");
  button.type = "button";
  const set = (theme) => {
    if (theme === "auto") delete root.dataset.theme; else root.dataset.theme = theme;
    button.textContent = `Paper: ${theme}`;
    button.dataset.theme = theme;
  };
  button.addEventListener("click", () => set(themes[(themes.indexOf(button.dataset.theme) + 1) % themes.length]));
  set(themes.includes(asked) ? asked : "auto");
  document.querySelector(".masthead").append(button);
  for (const box of all(".command")) {
    const copy = make("button", "plain", "Copy");
    copy.type = "button";
    copy.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(box.querySelector("code").textContent);
        copy.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(box.querySelector("code"));
        copy.textContent = "Selected";
      }
    });
    box.append(copy);
  }
  const shut = [];
  addEventListener("beforeprint", () => { for (const one of all("details:not([open])")) { one.open = true; shut.push(one); } });
  addEventListener("afterprint", () => { for (const one of shut.splice(0)) one.open = false; });
})();
