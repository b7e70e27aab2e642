// Refreshes the page from its own address with ?format=json. Each answer is of one process, which need not be the last one's.
"use strict";

const $ = (id) => document.getElementById(id);
const REFRESH = 1000 * document.body.dataset.refresh;
const ANSWER_WITHIN = 10000;
const FORGET_AFTER = 120000; // a process that has not answered for so long
const MINUTES_SHOWN = 300; // seconds
const GAP = 5; // seconds without a point: nothing was open, and nothing is drawn
const HOLDERS = 10; // the longest ones
const PARTS = ["out", "opening", "idle", "waiting"];

const processes = new Map(); // "host pid" -> {at, data}
const cards = new Map(); // the name of a pool -> its section
let chosen = null;
let paused = false;
let timer = null;

// Small helpers

function set(element, text) {
  if (element.textContent !== text) element.textContent = text; // a reader's place in it is kept
}

function svg(name, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

function span(seconds) {
  if (seconds < 0.9995) return `${Math.round(1000 * seconds)} ms`;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 120) return `${Math.round(seconds)} s`;
  return seconds < 7200 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 3600)} h`;
}

const plural = (number, word) => `${number} ${word}${number === 1 ? "" : "s"}`;

function fillTable(table, rows) {
  const body = table.tBodies[0];
  while (body.rows.length > rows.length) body.deleteRow(-1);
  rows.forEach(({ kind, cells }, number) => {
    const row = body.rows[number] || body.insertRow();
    row.className = kind || "";
    cells.forEach((text, column) => {
      const cell = row.cells[column] || row.insertCell();
      cell.className = column === 1 ? "text" : "";
      set(cell, text);
    });
  });
  table.hidden = !rows.length;
}

// A pool

function stateOf(pool) {
  const room = pool.cap === null ? Infinity : pool.cap - pool.open - pool.opening;
  if (pool.waiting) return ["waiting", `${plural(pool.waiting, "thread")} waiting for a connection`];
  if (room <= 0 && !pool.idle) return ["full", "All connections are out"];
  return ["free", "Connections are free"];
}

function describe(pool) {
  const parts = PARTS.map((part) => `${pool[part]} ${part}`).join(", ");
  return `${parts}; ${pool.cap === null ? "no cap" : `the cap is ${pool.cap}`}`;
}

function drawBar(bar, pool) {
  let rects = bar.querySelectorAll("rect");
  if (!rects.length) {
    const limit = svg("line", { class: "limit", y1: 0, y2: "100%" });
    bar.replaceChildren(...PARTS.map((part) => svg("rect", { class: part, y: 0, height: "100%" })), limit);
    rects = bar.querySelectorAll("rect");
  }
  // Those who wait stand beyond the cap, and however many they are, they leave three fifths to the connections.
  const whole = Math.max(pool.cap || 0, pool.open + pool.opening) || 1;
  const limit = Math.max(0.6, whole / (whole + pool.waiting)) * 100;
  const percent = (number) => `${number.toFixed(2)}%`;
  let x = 0;
  PARTS.forEach((part, number) => {
    const width = part === "waiting" ? 100 - limit : (limit * pool[part]) / whole;
    rects[number].setAttribute("x", percent(part === "waiting" ? limit : x));
    rects[number].setAttribute("width", percent(width));
    x += width;
  });
  const line = bar.querySelector("line");
  line.setAttribute("x1", percent(limit));
  line.setAttribute("x2", percent(limit));
  line.setAttribute("visibility", pool.waiting ? "visible" : "hidden");
  bar.setAttribute("aria-label", describe(pool));
}

function stretches(ago) {
  // The ranges of points between two gaps.
  const found = [];
  ago.forEach((seconds, number) => {
    if (!number || ago[number - 1] - seconds > GAP) found.push([]);
    found[found.length - 1].push(number);
  });
  return found;
}

function drawChart(card, pool) {
  const chart = card.querySelector(".chart");
  const { ago } = pool.history;
  const sums = ago.map(() => 0);
  const layers = PARTS.map((part) => pool.history[part].map((value, number) => [sums[number], (sums[number] += value)]));
  const top = 1.05 * Math.max(pool.cap || 0, ...sums, 1);
  const x = (number) => (MINUTES_SHOWN - Math.min(ago[number], MINUTES_SHOWN)).toFixed(1);
  const y = (value) => (100 - (100 * value) / top).toFixed(2);
  const paths = layers.map((layer, part) => {
    const d = stretches(ago).map((numbers) => {
      const upper = numbers.map((number) => `${x(number)} ${y(layer[number][1])}`);
      const lower = numbers.map((number) => `${x(number)} ${y(layer[number][0])}`).reverse();
      return `M${[...upper, ...lower].join("L")}Z`;
    });
    return svg("path", { class: PARTS[part], d: d.join("") });
  });
  if (pool.cap !== null) paths.push(svg("line", { class: "limit", x1: 0, x2: 300, y1: y(pool.cap), y2: y(pool.cap) }));
  chart.replaceChildren(...paths);
  const most = (part) => Math.max(0, ...pool.history[part]);
  const summary = `at most ${most("out")} out and ${most("waiting")} waiting`;
  const cap = pool.cap === null ? "" : `; the dashed line is the cap, ${pool.cap}`;
  set(card.querySelector(".most"), ago.length ? `${summary}${cap}` : "nothing recorded yet");
  chart.setAttribute("aria-label", `The last five minutes: ${summary}`);
}

function ratesOf(pool) {
  const rates = [`${pool.per_second.checkouts} checkouts a second`];
  if (pool.per_second.waits) rates.push(`${pool.per_second.waits} waits a second`);
  const mean = (histogram) => histogram && histogram.count && histogram.sum / histogram.count;
  if (mean(pool.wait_time)) rates.push(`mean wait ${span(mean(pool.wait_time))}`);
  if (mean(pool.use_time)) rates.push(`mean use ${span(mean(pool.use_time))}`);
  for (const key of ["timeouts", "refusals", "open_failures", "leaks"]) {
    if (pool[key]) rates.push(`${pool[key]} ${key.replace("_", " ")}`);
  }
  return rates;
}

function fillList(list, texts) {
  while (list.children.length > texts.length) list.lastChild.remove();
  texts.forEach((text, number) => set(list.children[number] || list.appendChild(document.createElement("li")), text));
}

function cardOf(name) {
  let card = cards.get(name);
  if (!card) {
    card = $("pool").content.firstElementChild.cloneNode(true);
    const heading = card.querySelector("h2");
    heading.id = `pool-${cards.size}-${Date.now()}`;
    card.setAttribute("aria-labelledby", heading.id);
    card.querySelector(".scroll").setAttribute("aria-label", `Holders of ${name}`);
    set(heading, name);
    cards.set(name, card);
    $("pools").append(card);
  }
  return card;
}

function showPool(name, pool) {
  const card = cardOf(name);
  const [state, text] = stateOf(pool);
  card.querySelector(".state").className = `state ${state}`;
  set(card.querySelector(".state"), text);
  const room = pool.cap === null ? "no cap" : Math.max(pool.cap - pool.open - pool.opening, 0);
  for (const [key, value] of Object.entries({ ...pool, room, cap: pool.cap === null ? "none" : pool.cap })) {
    const number = card.querySelector(`.numbers .${key} dd`);
    if (number) set(number, String(value));
  }
  drawBar(card.querySelector(".bar"), pool);
  drawChart(card, pool);
  fillList(card.querySelector(".rates"), ratesOf(pool));
  fillList(card.querySelector(".advice"), pool.advice || []);
  const more = pool.holders.length - HOLDERS;
  card.querySelector(".holders").classList.toggle("one", pool.aliases.length < 2);
  card.querySelector(".nobody").hidden = pool.holders.length > 0;
  card.querySelector(".more").hidden = more <= 0;
  set(card.querySelector(".more"), `${more} more, who have had theirs for less long`);
  fillTable(
    card.querySelector(".holders"),
    pool.holders.slice(0, HOLDERS).map((holder) => ({ 
      cells: [span(holder.seconds), holder.work || "no request", holder.last_statement || "none yet", holder.thread, holder.alias],
    })),
  );
  return `${name}: ${text}`;
}

// The page

function showProcesses() {
  const group = $("processes");
  const now = Date.now();
  for (const [key, seen] of processes) if (now - seen.at > FORGET_AFTER && key !== chosen) processes.delete(key);
  const keys = [...processes.keys()].sort();
  while (group.children.length > keys.length) group.lastChild.remove();
  keys.forEach((key, number) => {
    const button = group.children[number] || group.appendChild(document.createElement("button"));
    button.type = "button";
    button.dataset.key = key;
    button.setAttribute("aria-pressed", String(key === chosen));
    const { data, at } = processes.get(key);
    const pools = Object.values(data.pools);
    const sum = (part) => pools.reduce((total, pool) => total + pool[part], 0);
    if (!button.children.length) button.append(document.createElement("span"), document.createElement("small"));
    set(button.children[0], `PID ${data.process.pid} on ${data.process.host}`);
    set(button.children[1], `${sum("out")} out, ${sum("waiting")} waiting, ${now - at < 1000 ? "now" : `${span((now - at) / 1000)} ago`}`);
  });
}

function show() {
  const seen = processes.get(chosen);
  showProcesses();
  if (!seen) return;
  const { pools, events } = seen.data;
  $("events").classList.toggle("one", Object.keys(pools).length < 2);
  for (const [name, card] of cards) if (!(name in pools)) (card.remove(), cards.delete(name));
  const states = Object.entries(pools).map(([name, pool]) => showPool(name, pool));
  $("no-pools").hidden = states.length > 0;
  announce(states);
  const past = (event) => new Date(seen.at - 1000 * event.ago).toLocaleTimeString();
  fillTable(
    $("events"),
    events.map((event) => ({ kind: event.kind, cells: [past(event), event.text, event.count > 1 ? `${event.count} ×` : "1", event.pool] })),
  );
  $("no-events").hidden = events.length > 0;
}

let announced = "";
function announce(states) {
  // A screen reader is told when threads begin or cease to wait, not each number.
  const text = states.map((state) => state.replace(/: \d+ threads? waiting/, ": threads are waiting")).join(". ");
  if (announced !== text) set($("news"), (announced = text));
}

function showAge() {
  const seen = processes.get(chosen);
  const text = seen ? `Figures of ${new Date(seen.at).toLocaleTimeString()}` : "";
  set($("age"), paused ? `${text}, paused` : text);
}

function trouble(text) {
  $("trouble").hidden = !text;
  set($("trouble"), text);
}

async function ask() {
  const options = { cache: "no-store", signal: AbortSignal.timeout(ANSWER_WITHIN) };
  let response, data;
  try {
    response = await fetch(`${location.pathname}?format=json`, options);
    data = await response.json();
  } catch {
    throw new Error(response ? `the site answers with status ${response.status}` : "the site does not answer");
  }
  if (!response.ok) throw new Error(data.error);
  return data;
}

async function refresh() {
  clearTimeout(timer);
  try {
    const data = await ask();
    const key = `${data.process.host} ${data.process.pid}`;
    processes.set(key, { at: Date.now(), data });
    if (!processes.has(chosen)) chosen = key;
    trouble("");
    show();
  } catch (error) {
    trouble(`No new figures: ${error.message}`);
  }
  showAge();
  if (!paused && !document.hidden) timer = setTimeout(refresh, REFRESH);
}

$("pause").addEventListener("click", () => {
  paused = !paused;
  $("pause").setAttribute("aria-pressed", String(paused));
  showAge();
  if (paused) clearTimeout(timer);
  else refresh();
});
$("processes").addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  chosen = button.dataset.key;
  show();
  showAge();
});
document.addEventListener("visibilitychange", () => {
  if (!document.hidden && !paused) refresh();
});
refresh();
