"use strict";

const TOP = 12; // recommendations
const byId = (id) => document.getElementById(id);
const state = { history: [], ranks: new Map(), norms: null, turn: 0, searches: 0 };

// ---- requests

async function request(path, body) {
  const headers = {};
  const token = sessionStorage.getItem("token");
  if (token) headers.authorization = `Bearer ${token}`;
  const options = { headers };
  if (body !== undefined) {
    headers["content-type"] = "application/json";
    options.method = "POST";
    options.body = JSON.stringify(body);
  }
  const response = await fetch(path, options);
  const content = await response.json();
  byId("login").hidden = response.status !== 401;
  if (!response.ok) throw new Error(content.error);
  return content;
}

async function attempt(work) {
  try {
    await work();
    byId("status").textContent = "";
  } catch (error) {
    byId("status").textContent = error.message;
  }
}

// ---- elements; texts are never parsed as HTML

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function row(item, parts, action, label) {
  const line = element("li"), button = element("button");
  button.type = "button";
  button.append(...parts);
  button.title = `${item.title ?? ""} (${item.item})`;
  if (label) button.setAttribute("aria-label", label);
  button.addEventListener("click", action);
  line.append(button);
  return line;
}

const nameOf = (item) => item.title ?? item.item;

// ---- items

function search() {
  const turn = ++state.searches;
  return attempt(async () => {
    const { items } = await request(`/items?limit=40&query=${encodeURIComponent(byId("search").value)}`);
    if (turn !== state.searches) return; // a later search has begun
    byId("found").replaceChildren(...items.map((item) =>
      row(item, [element("span", "title", nameOf(item)), element("span", "soft", item.title ? item.item : "")], () => add(item))));
    if (!items.length) byId("found").append(element("li", "hint", "No item has this text."));
  });
}

// ---- history

function add(item) {
  state.history.push({ item: item.item, title: item.title });
  update();
}

function remove(place) {
  state.history.splice(place, 1);
  update();
}

function load() {
  return attempt(async () => {
    const user = byId("user").value.trim();
    if (!user) return;
    const { events } = await request(`/users/${encodeURIComponent(user)}/history?limit=1000`);
    state.history = events.map(({ item, title }) => ({ item, title }));
    state.norms = null;
    update();
  });
}

function showHistory() {
  const focused = byId("history").contains(document.activeElement);
  const lines = state.history.map((item, place) =>
    row(item, [element("span", "rank", place + 1), element("span", "title", nameOf(item)), element("span", "soft", "×")],
      () => remove(place), `Remove ${nameOf(item)}`));
  byId("history").replaceChildren(...lines.reverse());
  byId("count").textContent = state.history.length ? `(${state.history.length})` : "";
  byId("empty").hidden = state.history.length > 0;
  if (focused) (byId("history").querySelector("button") ?? byId("search")).focus();
}

// ---- recommendations

function update() {
  const turn = ++state.turn;
  showHistory();
  if (!state.history.length) {
    state.ranks = new Map();
    state.norms = null;
    byId("recommended").replaceChildren();
    for (const id of ["gate", "state", "change"]) byId(id).replaceChildren();
    byId("status").textContent = "";
    return undefined;
  }
  const items = state.history.map(({ item }) => item);
  return attempt(async () => {
    const [found, inside] = await Promise.all([
      request("/recommendations", { items, k: TOP }), request("/states", { items })]);
    if (turn !== state.turn) return; // the history has changed meanwhile
    showRecommended(found.items);
    showStates(inside.layers);
    document.body.dataset.turn = turn; // shows tests that this turn is complete
  });
}

function movement(item, rank) {
  if (!state.ranks.size) return element("span", "soft move", "");
  const before = state.ranks.get(item);
  if (before === undefined) return element("span", "soft move new", "new");
  if (before === rank) return element("span", "soft move", "=");
  const moved = before - rank;
  return element("span", moved > 0 ? "soft move up" : "soft move down", `${moved > 0 ? "▲" : "▼"}${Math.abs(moved)}`);
}

function showRecommended(items) {
  const focused = byId("recommended").contains(document.activeElement);
  const scores = items.map(({ score }) => score);
  const low = Math.min(...scores), span = Math.max(...scores) - low || 1;
  const lines = items.map((item, place) => {
    const bar = element("span", "bar");
    bar.style.width = `${15 + 85 * (item.score - low) / span}%`;
    const parts = [bar, element("span", "rank", place + 1), element("span", "title", nameOf(item)),
      movement(item.item, place), element("span", "soft score", item.score.toFixed(2))];
    return row(item, parts, () => add(item));
  });
  byId("recommended").replaceChildren(...lines);
  state.ranks = new Map(items.map((item, place) => [item.item, place]));
  if (focused) byId("recommended").querySelector("button")?.focus();
}

// ---- pictures

const RAMP = [[237, 243, 250], [158, 197, 228], [76, 138, 199], [31, 84, 158], [11, 38, 92]];
const DIVERGING = [[178, 86, 20], [236, 190, 150], [240, 241, 243], [160, 196, 230], [31, 84, 158]];

function color(ramp, share) {
  const place = Math.min(Math.max(share, 0), 1) * (ramp.length - 1), low = Math.min(Math.floor(place), ramp.length - 2);
  return ramp[low].map((from, i) => Math.round(from + (place - low) * (ramp[low + 1][i] - from)));
}

function svg(name, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

// rows: [[number of each head] of each layer]; share: number -> 0 to 1 on the ramp; signed: positive numbers have a sign
function heatMap(rows, ramp, share, what, signed = false) {
  const left = 52, top = 18, width = 300, height = 30;
  const format = (value) => `${signed && value > 0 ? "+" : ""}${value.toFixed(2)}`;
  const heads = Math.max(...rows.map((values) => values.length));
  const cell = (width - left) / heads;
  const label = rows.map((values, layer) => `layer ${layer + 1}: ${values.map(format).join(", ")}`);
  const picture = svg("svg", { viewBox: `0 0 ${width} ${top + rows.length * height}`, role: "img",
    "aria-label": `${what}; ${label.join("; ")}` });
  if (heads > 1) {
    for (let head = 0; head < heads; head++) {
      picture.append(svg("text", { x: left + (head + 0.5) * cell, y: 12, "text-anchor": "middle" }, `head ${head + 1}`));
    }
  }
  rows.forEach((values, layer) => {
    const y = top + layer * height;
    picture.append(svg("text", { x: 0, y: y + 19 }, `layer ${layer + 1}`));
    values.forEach((value, head) => {
      const wide = (width - left) / values.length, rgb = color(ramp, share(value));
      const x = left + head * wide;
      picture.append(svg("rect", { x, y, width: wide - 2, height: height - 2, rx: 3, fill: `rgb(${rgb})` }));
      const dark = 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2] > 140;
      picture.append(svg("text", { x: x + wide / 2 - 1, y: y + 19, "text-anchor": "middle", class: dark ? "dark" : "light" },
        format(value)));
    });
  });
  return picture;
}

function show(id, picture, without) {
  byId(id).replaceChildren(picture ?? element("p", "hint", without));
}

function showStates(layers) {
  const gates = layers.filter(({ gate }) => gate).map(({ gate }) => gate);
  const norms = layers.map((layer) => layer.state);
  const most = (rows) => Math.max(...rows.flat(), 1e-12), least = (rows) => Math.min(...rows.flat());
  show("gate", gates.length ? heatMap(gates, RAMP, (v) => v / most(gates), "gates") : null,
    "The model has no gates by head.");
  const low = norms.length ? 0.8 * least(norms) : 0;
  show("state", norms.length ? heatMap(norms, RAMP, (v) => (v - low) / (most(norms) - low), "norms of states") : null,
    "The model carries no states: it encodes the last items again.");
  let change = null;
  if (state.norms && norms.length) {
    const moved = norms.map((row, layer) => row.map((norm, head) => norm - state.norms[layer][head]));
    const limit = Math.max(...moved.flat().map(Math.abs), 1e-12);
    change = heatMap(moved, DIVERGING, (v) => 0.5 + v / limit / 2, "changes of norms", true);
  }
  show("change", change, "Add another item.");
  state.norms = norms;
}

// ---- keyboard

// Arrow keys move through a list; from the search field they enter it.
document.addEventListener("keydown", (event) => {
  const target = event.target, down = event.key === "ArrowDown";
  if (event.key === "/" && target.tagName !== "INPUT") {
    event.preventDefault();
    byId("search").focus();
  } else if (target === byId("search") && down) {
    event.preventDefault();
    byId("found").querySelector("button")?.focus();
  } else if ((down || event.key === "ArrowUp") && target.closest?.(".list")) {
    event.preventDefault();
    const line = target.parentElement, next = down ? line.nextElementSibling : line.previousElementSibling;
    const field = line.parentElement.id === "found" && !down ? byId("search") : null;
    (next?.querySelector("button") ?? field)?.focus();
  }
});

// ---- start

let delay;
byId("search").addEventListener("input", () => {
  clearTimeout(delay);
  delay = setTimeout(search, 120);
});
byId("load").addEventListener("submit", (event) => {
  event.preventDefault();
  load();
});
byId("clear").addEventListener("click", () => {
  state.history = [];
  update();
});
byId("login").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("token", byId("token").value.trim());
  byId("token").value = "";
  search();
  update();
});

attempt(async () => {
  const health = await (await fetch("/health")).json();
  byId("model").textContent = `${health.checkpoint}, ${health.items.toLocaleString("en")} items`;
}).then(search);
