"use strict";
// Draws the points of the page, tells the value of the one that is pointed at, and finds values by their texts.
(() => {
  const points = JSON.parse(document.getElementById("points").textContent);
  const count = points.x.length, widest = Math.max(...points.x), highest = Math.max(...points.y);
  const sheet = document.querySelector(".sheet"), canvas = sheet.querySelector("canvas"), tip = sheet.querySelector(".tip");
  const pen = canvas.getContext("2d"), search = document.querySelector("input"), found = document.querySelector(".found");
  const [zoomIn, zoomOut, all] = document.querySelectorAll(".zoom button");
  const MARGIN = 26, REACH = 18, MOST_ZOOM = 200, PIXELS_PER_LABEL = 12000, LEAST_LABELS = 14;
  let width = 0, height = 0, zoom = 1, centre = [widest / 2, highest / 2], marked = -1, matches = [], dragged = null;

  const unit = () => zoom * Math.min((width - 2 * MARGIN) / (widest || 1), (height - 2 * MARGIN) / (highest || 1));
  const place = i => [width / 2 + (points.x[i] - centre[0]) * unit(), height / 2 - (points.y[i] - centre[1]) * unit()];
  const radius = () => Math.min(7, (count > 5000 ? 1.8 : count > 800 ? 2.6 : count > 150 ? 3.6 : 4.8) * zoom ** 0.25);

  const channels = colour => {
    pen.fillStyle = colour;
    return [1, 3, 5].map(start => parseInt(pen.fillStyle.slice(start, start + 2), 16));
  };

  // The colours of the page, which differ between light and dark.
  const paints = () => {
    const style = getComputedStyle(document.documentElement), named = name => style.getPropertyValue(name).trim();
    const [low, high] = [channels(named("--a3")), channels(named("--a1"))];
    const shade = part => `rgb(${low.map((each, k) => Math.round(each + (high[k] - each) * part)).join(",")})`;
    const kinds = Array.from({ length: points.kinds }, (_, kind) => named(`--r${kind}`));
    const of = colour => colour < 0 ? named("--hatch") : points.kinds ? kinds[colour] : shade(colour / points.shades);
    return { of, ink: named("--ink"), paper: named("--paper") };
  };

  const dot = (i, size) => {
    const [x, y] = place(i);
    pen.moveTo(x + size, y);
    pen.arc(x, y, size, 0, 2 * Math.PI);
  };

  // Values are in the order of importance: later ones are drawn first, and earlier ones get the room for names.
  const draw = () => {
    const { of, ink, paper } = paints(), size = radius(), ratio = devicePixelRatio || 1;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    pen.scale(ratio, ratio);
    pen.globalAlpha = matches.length ? 0.25 : count > 5000 ? 0.6 : 0.85;
    for (let i = count - 1; i >= 0; i--) {
      pen.beginPath();
      dot(i, size);
      pen.fillStyle = of(points.colours[i]);
      pen.fill();
    }
    pen.globalAlpha = 1;
    const chosen = [...matches, ...(marked < 0 ? [] : [marked])];
    for (const i of chosen) {
      pen.beginPath();
      dot(i, size + 2);
      pen.fillStyle = of(points.colours[i]);
      pen.fill();
      pen.lineWidth = 1.5;
      pen.strokeStyle = ink;
      pen.stroke();
    }
    label(matches.length ? matches : null, size, ink, paper);
  };

  const label = (only, size, ink, paper) => {
    const family = getComputedStyle(document.body).fontFamily, taken = [];
    pen.font = `12px ${family}`;
    pen.textBaseline = "middle";
    pen.lineWidth = 3;
    pen.lineJoin = "round";
    let left = Math.max(LEAST_LABELS, Math.round(width * height / PIXELS_PER_LABEL));
    for (let n = 0; n < (only || points.x).length && left > 0; n++) {
      const i = only ? only[n] : n, [x, y] = place(i);
      const name = points.names[i].length > 28 ? points.names[i].slice(0, 27) + "\u2026" : points.names[i];
      const long = pen.measureText(name).width, from = x + size + 4 + long > width - 4 ? x - size - 4 - long : x + size + 4;
      const box = [from - 4, y - 9, from + long + 4, y + 9];
      const outside = box[0] < 0 || box[1] < 0 || box[2] > width || box[3] > height;
      if (outside || taken.some(b => b[0] < box[2] && box[0] < b[2] && b[1] < box[3] && box[1] < b[3])) continue;
      taken.push(box);
      left--;
      pen.strokeStyle = paper;
      pen.strokeText(name, from, y);
      pen.fillStyle = ink;
      pen.fillText(name, from, y);
    }
  };

  const line = (tag, text) => {
    const element = document.createElement(tag);
    element.textContent = text;
    return element;
  };

  const tell = i => {
    if (i === marked) return;
    marked = i;
    tip.hidden = i < 0;
    draw();
    if (i < 0) return;
    const lines = [line("strong", points.names[i])];
    if (points.seen.length) lines.push(line("span", `seen ${points.seen[i]} ${points.seen[i] === "1" ? "time" : "times"}`));
    if (points.texts.length && points.texts[i]) lines.push(line("span", `${points.title}: ${points.texts[i]}`));
    tip.replaceChildren(...lines);
    const [x, y] = place(i), box = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(0, Math.min(x + 12, width - box.width))}px`;
    tip.style.top = `${y + 16 + box.height < height ? y + 16 : Math.max(0, y - 16 - box.height)}px`;
  };

  const nearest = event => {
    const bounds = canvas.getBoundingClientRect();
    let best = -1, least = REACH ** 2;
    for (let i = 0; i < count; i++) {
      const [x, y] = place(i), far = (x - event.clientX + bounds.left) ** 2 + (y - event.clientY + bounds.top) ** 2;
      if (far < least) [best, least] = [i, far];
    }
    return best;
  };

  const zoomTo = (wanted, middle) => {
    zoom = Math.max(1, Math.min(MOST_ZOOM, wanted));
    centre = zoom === 1 ? [widest / 2, highest / 2] : middle;
    canvas.style.touchAction = zoom === 1 ? "auto" : "none";
    tell(-1);
    draw();
  };

  canvas.addEventListener("pointerdown", event => {
    tell(nearest(event));
    if (zoom > 1) dragged = [event.clientX, event.clientY, ...centre];
  });
  canvas.addEventListener("pointermove", event => {
    if (dragged === null || !event.buttons) {
      tell(nearest(event));
      return;
    }
    centre = [dragged[2] - (event.clientX - dragged[0]) / unit(), dragged[3] + (event.clientY - dragged[1]) / unit()];
    tell(-1);
    draw();
  });
  addEventListener("pointerup", () => { dragged = null; });
  canvas.addEventListener("pointerleave", event => { if (event.pointerType === "mouse") tell(-1); });
  canvas.addEventListener("dblclick", event => {
    const bounds = canvas.getBoundingClientRect(), scale = unit();
    const across = event.clientX - bounds.left - width / 2, down = event.clientY - bounds.top - height / 2;
    zoomTo(zoom * 2, [centre[0] + across / scale, centre[1] - down / scale]);
  });
  const focus = () => {
    if (!matches.length) return centre;
    const mean = of => matches.reduce((sum, i) => sum + of[i], 0) / matches.length;
    return [mean(points.x), mean(points.y)];
  };
  zoomIn.addEventListener("click", () => zoomTo(zoom * 2, focus()));
  zoomOut.addEventListener("click", () => zoomTo(zoom / 2, centre));
  all.addEventListener("click", () => zoomTo(1));
  search.addEventListener("input", () => {
    const wanted = search.value.trim().toLowerCase(), names = points.names.map(name => name.toLowerCase());
    const whole = names.indexOf(wanted), partly = wanted ? [...names.keys()].filter(i => names[i].includes(wanted)) : [];
    matches = whole < 0 ? partly : [whole, ...partly.filter(i => i !== whole)];
    found.textContent = wanted ? `${matches.length.toLocaleString("en")} found` : "";
    tell(whole);
    draw();
  });
  const fit = () => {
    [width, height] = [canvas.clientWidth, canvas.clientHeight];
    draw();
  };
  fit();
  new ResizeObserver(fit).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
})();
