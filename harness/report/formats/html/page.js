// SPDX-License-Identifier: Apache-2.0

/**
 * What a browser adds to the page of a run: filters, links that unfold what they lead to, and the timeline. The page is
 * made by ../html.ts, which says how the data is laid out; this file has no imports and uses no network.
 */

/** At most so many calls are drawn at once: more would be one blot, and slow. The caption says so. */
const DRAWN_CALLS = 1500;
/** Arrows from lane to lane are drawn while they can be told apart. */
const DRAWN_ARROWS = 250;
/** Fields of a call in the flat list. */
const FIELDS = 7;

const data = JSON.parse(document.querySelector("#data").textContent);
const { texts, names } = data;

const scenarios = data.scenarios.map(([anchor, title, verdict, at, ms, stack, sandboxes]) => ({
  kind: "scenario",
  anchor,
  title,
  verdict,
  at,
  end: at + Math.max(ms, 0),
  stack,
  sandboxes: new Set(sandboxes),
  methods: new Set(),
}));

const calls = [];
for (let index = 0; index < data.calls.length; index += FIELDS) {
  const [stack, method, at, ms, status, sandbox, details] = data.calls.slice(index, index + FIELDS);
  const isOpen = ms < 0;
  const outcome = texts[status];
  const isStream = texts[method] === "WatchSandboxes";
  calls.push({
    kind: "call",
    stack,
    method: texts[method],
    at,
    end: isOpen ? data.ms : at + ms,
    ms,
    status: isOpen ? "no answer" : outcome,
    sandbox,
    details: texts[details],
    isStream,
    look: isOpen || isStream || outcome === "CANCELLED" ? "open" : outcome === "OK" ? "ok" : "bad",
  });
}

const processes = data.processes.map(([name, stack, at, readyMs, ms, ending, pid]) => ({
  kind: "process",
  name,
  stack,
  at,
  end: ms < 0 ? data.ms : at + ms,
  readyMs,
  ms,
  ending,
  pid,
}));

const marks = data.marks.map(([stack, at, what]) => ({ kind: "mark", stack, at, end: at, what }));

/** When the last gateway of a stack ended: after that nobody has its sandboxes. */
const endOfStack = (stack) => {
  const gateways = processes.filter((each) => each.name === "gateway" && each.stack === stack);
  return gateways.length > 0 ? Math.max(...gateways.map(({ end }) => end)) : data.ms;
};

/** What a call begins, long before its user sees a phase of that name. */
const BEGINS = { StopSandbox: "STOPPING", DeleteSandbox: "DELETING" };

/**
 * From one phase of a sandbox to the next; it ends when it is GONE, or else its last DeleteSandbox is answered, or its
 * gateway ends.
 */
const phases = (() => {
  const bySandbox = Map.groupBy(data.phases, ([, sandbox]) => sandbox);
  const began = Map.groupBy(
    calls.filter((call) => BEGINS[call.method] && call.look !== "bad"),
    ({ sandbox }) => sandbox,
  );
  return [...bySandbox].flatMap(([sandbox, of]) => {
    const asked = began.get(sandbox) ?? [];
    const deletions = asked.filter(({ method }) => method === "DeleteSandbox");
    const begun = asked.map(({ stack, method, at }) => [stack, sandbox, BEGINS[method], at]);
    const gone = of.find(([, , phase]) => phase === "GONE")?.[3];
    const lived = [...of, ...begun]
      .filter(([, , phase, at]) => phase !== "GONE" && at < (gone ?? Infinity))
      .toSorted((a, b) => a[3] - b[3])
      .filter(([, , phase], index, all) => phase !== all[index - 1]?.[2]);
    if (lived.length === 0) return [];
    const deleted = deletions.length > 0 ? Math.max(...deletions.map(({ end }) => end)) : data.ms;
    const end = Math.max(lived.at(-1)[3], Math.min(gone ?? deleted, endOfStack(lived[0][0])));
    const bands = lived.map(([stack, , phase, at], index) => ({
      kind: "phase",
      stack,
      sandbox,
      phase,
      at,
      end: lived[index + 1]?.[3] ?? end,
    }));
    return [{ sandbox, at: bands[0].at, end, bands }];
  });
})();

for (const scenario of scenarios)
  for (const sandbox of scenario.sandboxes) scenariosOf(sandbox).push(scenario);

/** The scenarios that made or shared a sandbox; usually one. */
function scenariosOf(sandbox) {
  const known = (scenariosOf.all ??= new Map());
  if (!known.has(sandbox)) known.set(sandbox, []);
  return known.get(sandbox);
}

/** Those that ran on a stack at that time: what none of them made belongs to them all. */
const byStack = Map.groupBy(scenarios, ({ stack }) => stack);
const during = ({ stack, at, end }) =>
  (byStack.get(stack) ?? []).filter((scenario) => at <= scenario.end && end >= scenario.at);

for (const call of calls) {
  const makers = scenariosOf(call.sandbox);
  call.owners = makers.length > 0 ? makers : during(call);
  for (const scenario of call.owners) {
    scenario.methods.add(call.method);
    // Whose creation failed never learnt the sandbox's id.
    if (texts[call.sandbox]) scenario.sandboxes.add(call.sandbox);
  }
}

const nameOf = (sandbox) => names[sandbox] ?? texts[sandbox];

// Filters

const form = document.querySelector("#filters");
const filter = { words: [], sandbox: -1, method: "", verdicts: new Set(), all: true, none: true };
/** What the filters leave. */
let visible = { scenarios: new Set(scenarios), calls };

function readFilters() {
  const fields = new FormData(form);
  const boxes = [...form.querySelectorAll("[name=verdict]")];
  filter.words = fields.get("scenario").toLowerCase().split(/\s+/).filter(Boolean);
  filter.sandbox = fields.get("sandbox") ? texts.indexOf(fields.get("sandbox")) : -1;
  filter.method = fields.get("method");
  filter.verdicts = new Set(fields.getAll("verdict"));
  filter.all = filter.words.length === 0 && filter.verdicts.size === boxes.length;
  filter.none = filter.all && filter.sandbox < 0 && !filter.method;
}

const matches = (scenario) =>
  filter.verdicts.has(scenario.verdict) &&
  filter.words.every((word) => scenario.title.toLowerCase().includes(word)) &&
  (filter.sandbox < 0 || scenario.sandboxes.has(filter.sandbox)) &&
  (!filter.method || scenario.methods.has(filter.method));

function belongs(call, shown) {
  if (filter.method && call.method !== filter.method) return false;
  if (filter.sandbox >= 0 && call.sandbox !== filter.sandbox) return false;
  return filter.all || call.owners.some((scenario) => shown.has(scenario));
}

/** Whether something is on the stack, and in the time, of what the filters leave; the engine is on all stacks. */
const isNear = ({ stack, at, end }) =>
  filter.none ||
  [...visible.scenarios].some(
    (each) => (stack === 0 || stack === each.stack) && at <= each.end && end >= each.at,
  );

function applyFilters() {
  readFilters();
  const shown = new Set(scenarios.filter(matches));
  visible = { scenarios: shown, calls: calls.filter((call) => belongs(call, shown)) };
  const anchors = new Set([...shown].map(({ anchor }) => anchor));
  for (const element of document.querySelectorAll("[data-scenario]"))
    element.hidden = !anchors.has(element.dataset.scenario);
  for (const table of document.querySelectorAll("table.scenarios"))
    table.hidden = !table.querySelector("tr[data-scenario]:not([hidden])");
  const many = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
  document.querySelector("#shown").textContent =
    `${many(shown.size, "scenario")}, ${many(visible.calls.length, "call")}`;
  draw();
}

/** Not by a "reset" event, which comes before the fields have changed. */
function clearFilters() {
  form.reset();
  applyFilters();
}

// Geometry: every lane has rows, in which things that overlap in time stand beneath each other

const GUTTER = 92;
const RIGHT = 12;
const AXIS = 22;
const FLAGS = 14;

/** Gives each item the first row that is free at its time. Returns how many rows there are. */
function pack(items) {
  const ends = [];
  for (const item of items.toSorted((a, b) => a.at - b.at)) {
    let row = ends.findIndex((end) => end <= item.at);
    if (row < 0) row = ends.length;
    ends[row] = item.end;
    item.row = row;
  }
  return ends.length;
}

/** The most rows that calls take: more overlap. */
const CALL_ROWS = 10;

const lanes = (() => {
  const of = (...names_) => processes.filter(({ name }) => names_.includes(name));
  const bars = (items, height) => ({ items, rows: pack(items), height });
  const streams = calls.filter(({ isStream }) => isStream);
  const unary = calls.filter(({ isStream }) => !isStream);
  const unaryRows = Math.min(CALL_ROWS, pack(unary));
  for (const call of unary) call.row %= CALL_ROWS;
  const sandboxRows = pack(phases);
  for (const { row, bands } of phases) for (const band of bands) band.row = row;
  return [
    { name: "test", parts: [bars(of("test"), 5), bars(scenarios, 12)] },
    { name: "gateway", parts: [bars(of("gateway"), 7)] },
    {
      name: "driver",
      parts: [
        bars(of("driver"), 7),
        bars(streams, 3),
        { items: unary, rows: unaryRows, height: 7, isCalls: true },
      ],
    },
    { name: "engine", parts: [bars(of("engine", "keeper"), 7)] },
    {
      name: "supervisor",
      parts: [{ items: phases.flatMap(({ bands }) => bands), rows: sandboxRows, height: 12 }],
    },
  ];
})();

const GAP = 2;
const HEIGHT = (() => {
  let y = AXIS + FLAGS;
  for (const lane of lanes) {
    lane.top = y;
    y += 6;
    for (const part of lane.parts) {
      part.top = y;
      y += part.rows * (part.height + GAP) + (part.rows > 0 ? 3 : 0);
    }
    y = Math.max(y + 4, lane.top + 22);
    lane.bottom = y;
    y += 4;
  }
  return y;
})();

// Drawing

const chart = document.querySelector("#chart");
let view = { from: 0, to: Math.max(data.ms, 1) };
let width = 1000;
/** What is drawn, in the order of the elements. */
let drawn = [];
let focused;

const xOf = (at) => GUTTER + ((at - view.from) / (view.to - view.from)) * (width - GUTTER - RIGHT);
const timeAt = (x) => view.from + ((x - GUTTER) / (width - GUTTER - RIGHT)) * (view.to - view.from);
const inView = ({ at, end }) => at <= view.to && end >= view.from;
const html = (text) => String(text).replace(/[&<>"]/g, (character) => `&#${character.charCodeAt(0)};`);
const f = (number) => number.toFixed(1);

function took(ms) {
  if (ms < 1000) return `${ms < 10 ? Math.round(ms * 10) / 10 : Math.round(ms)} ms`;
  return ms < 60_000
    ? `${(ms / 1000).toFixed(2)} s`
    : `${Math.floor(ms / 60_000)} min ${Math.round((ms % 60_000) / 1000)} s`;
}

/** What a mark says, line by line: shown beside the pointer, and read by a screen reader. */
function describe(item) {
  // As the logs have it.
  const clock = new Date(data.startedAt + item.at).toISOString().slice(11, 23);
  const when = `at ${took(item.at)} (${clock} UTC)`;
  const stack = item.stack ? ` · stack ${item.stack}` : "";
  if (item.kind === "scenario")
    return [`${item.verdict}: ${item.title}`, `${when}, took ${took(item.end - item.at)}${stack}`];
  if (item.kind === "call") {
    const about = item.sandbox >= 0 && texts[item.sandbox] ? `sandbox ${nameOf(item.sandbox)}` : "";
    const time = item.ms < 0 ? "" : ` after ${took(item.ms)}`;
    return [`${item.method} → ${item.status}${time}`, item.details, `${when}${stack}`, about];
  }
  if (item.kind === "phase")
    return [
      `sandbox ${nameOf(item.sandbox)}: ${item.phase.toLowerCase()}`,
      `${when} for ${took(item.end - item.at)}${stack}`,
    ];
  if (item.kind === "mark") return [item.what, `${when}${stack}`];
  const ready = item.readyMs < 0 ? "never answered" : `answered after ${took(item.readyMs)}`;
  return [
    `${item.name}, process ${item.pid}`,
    `${when}, ${ready}`,
    item.ms < 0 ? "still running" : `ran ${took(item.ms)}, ended with ${item.ending}${stack}`,
  ];
}

const label = (item) => html(describe(item).filter(Boolean).join(", "));

function lookOf(item) {
  if (item.kind === "scenario") return `scn v-${item.verdict}`;
  if (item.kind === "call") return `call ${item.look}`;
  return item.kind === "phase" ? `band p-${item.phase.toLowerCase()}` : "process";
}

function bar(item, part, index) {
  const [from, to] = [Math.max(xOf(item.at), GUTTER), Math.min(xOf(item.end), width - RIGHT)];
  item.y = part.top + item.row * (part.height + GAP);
  const rect = `<rect class="m ${lookOf(item)}" data-i="${index}" tabindex="-1" role="img" aria-label="${label(item)}" x="${f(from)}" y="${item.y}" width="${f(Math.max(to - from, 2))}" height="${part.height}" rx="1.5"/>`;
  // A bad end is a red one, not a red life: most were killed on purpose.
  if (item.kind === "process" && item.ending && item.ending !== "exit code 0" && item.end <= view.to)
    return `${rect}<rect class="died" x="${f(to - 3)}" y="${item.y}" width="3" height="${part.height}"/>`;
  const text =
    item.kind === "scenario" ? item.title.split(" ")[0] : item.kind === "phase" ? nameOf(item.sandbox) : "";
  if (!text || to - from < text.length * 6 + 8) return rect;
  const strong = item.kind === "scenario" && item.verdict !== "pass" ? " strong" : "";
  return `${rect}<text class="inside${strong}" x="${f(from + 4)}" y="${item.y + part.height - 3}">${html(text)}</text>`;
}

/** The calls that are drawn: all in view, or those that tell most. */
function chosenCalls() {
  const candidates = visible.calls.filter(inView);
  if (candidates.length <= DRAWN_CALLS) return { chosen: candidates, of: candidates.length };
  const weight = (call) => (call.look === "bad" || call.ms < 0 || call.isStream ? Infinity : call.ms);
  const byWeight = candidates.toSorted((a, b) => (weight(a) === weight(b) ? 0 : weight(b) - weight(a)));
  return { chosen: byWeight.slice(0, DRAWN_CALLS), of: candidates.length };
}

const isShown = {
  scenario: (item) => visible.scenarios.has(item),
  process: isNear,
  phase: (band) => {
    if (filter.sandbox >= 0) return band.sandbox === filter.sandbox;
    const makers = scenariosOf(band.sandbox);
    return makers.length > 0 ? makers.some((scenario) => visible.scenarios.has(scenario)) : isNear(band);
  },
};

function draw() {
  width = Math.max(chart.clientWidth, 480);
  const { chosen, of } = chosenCalls();
  const isChosen = new Set(chosen);
  drawn = [];
  const out = [axis()];
  for (const lane of lanes) {
    out.push(
      `<rect class="lane-back" x="${GUTTER}" y="${lane.top}" width="${width - GUTTER - RIGHT}" height="${lane.bottom - lane.top}" rx="3"/>`,
      `<text class="lane" x="${GUTTER - 10}" y="${lane.top + 15}" text-anchor="end">${lane.name}</text>`,
      lane.parts.every(({ rows }) => rows === 0)
        ? `<text x="${GUTTER + 8}" y="${lane.top + 15}">nothing recorded: not a program of this run</text>`
        : "",
    );
  }
  out.push(flags());
  if (chosen.length <= DRAWN_ARROWS) out.push(arrows(chosen));
  for (const [number, lane] of lanes.entries())
    for (const part of lane.parts) {
      const items = part.items.filter((item) =>
        item.kind === "call" ? isChosen.has(item) : inView(item) && isShown[item.kind](item),
      );
      for (const item of items.toSorted((a, b) => a.at - b.at)) {
        item.lane = number + 1;
        out.push(bar(item, part, drawn.push(item) - 1));
      }
    }
  chart.innerHTML = `<svg viewBox="0 0 ${width} ${HEIGHT}" width="${width}" height="${HEIGHT}" role="group" aria-label="Timeline of the run, ${drawn.length} marks in ${lanes.length} lanes; arrow keys move from mark to mark">${out.join("")}<rect class="brush" y="${AXIS}" height="${HEIGHT - AXIS}" width="0"/></svg>`;
  const first = Math.max(drawn.indexOf(focused), 0);
  elementOf(first)?.setAttribute("tabindex", "0");
  document.querySelector("#range").textContent =
    `${took(Math.max(view.from, 0))} to ${took(view.to)} of ${took(data.ms)}`;
  document.querySelector("#drawn").textContent =
    chosen.length < of
      ? `${chosen.length.toLocaleString("en")} of ${of.toLocaleString("en")} calls are drawn: those that did not end with OK, then the longest. Zoom in, or filter, to see the others.`
      : `${of === 1 ? "One call is" : `All ${of.toLocaleString("en")} calls are`} drawn.`;
}

const elementOf = (index) => chart.querySelector(`[data-i="${index}"]`);

function axis() {
  const span = view.to - view.from;
  const step = niceStep(span / Math.max(3, Math.floor((width - GUTTER) / 110)));
  const out = [];
  for (let at = Math.ceil(view.from / step) * step; at <= view.to; at += step) {
    const x = f(xOf(at));
    // In the middle below its line, unless that would cut it off.
    const anchor = xOf(at) > width - 40 ? "end" : "middle";
    out.push(
      `<line class="grid" x1="${x}" x2="${x}" y1="${AXIS - 4}" y2="${HEIGHT}"/><text x="${anchor === "end" ? width - 2 : x}" y="13" text-anchor="${anchor}">${timeOf(at, step)}</text>`,
    );
  }
  return out.join("");
}

/** A time on the axis, with as many digits as tell it from the next: "31.6 s", "250 ms". */
function timeOf(at, step) {
  if (view.to < 1000) return step >= 1 ? `${Math.round(at)} ms` : `${at.toFixed(1)} ms`;
  return `${(at / 1000).toFixed(Math.max(0, Math.ceil(-Math.log10(step / 1000))))} s`;
}

/** 1, 2 or 5 times a power of ten. */
function niceStep(rough) {
  const power = 10 ** Math.floor(Math.log10(rough));
  return [1, 2, 5, 10].find((factor) => factor * power >= rough) * power;
}

/** Faults and restarts: a flag above all lanes, and a line through them. */
function flags() {
  return marks
    .filter((mark) => inView(mark) && isNear(mark))
    .map((mark) => {
      const x = xOf(mark.at);
      mark.lane = 0;
      mark.y = AXIS;
      const index = drawn.push(mark) - 1;
      return `<line class="flag-line" x1="${f(x)}" x2="${f(x)}" y1="${AXIS + 10}" y2="${HEIGHT}"/><path class="m flag" data-i="${index}" tabindex="-1" role="img" aria-label="${label(mark)}" d="M${f(x - 5)} ${AXIS}h10l-5 10z"/>`;
    })
    .join("");
}

/** Each call as an arrow from the gateway to the driver, where it becomes a bar. */
function arrows(chosen) {
  const gateway = lanes[1];
  const part = lanes[2].parts[2];
  return chosen
    .filter((call) => !call.isStream && call.at >= view.from && call.at <= view.to)
    .map((call) => {
      const x = f(xOf(call.at) + 0.5);
      const y = part.top + call.row * (part.height + GAP);
      return `<path class="arrow ${call.look}" d="M${x} ${gateway.bottom - 3}V${y}m-2.5 -3.5l2.5 3.5l2.5 -3.5"/>`;
    })
    .join("");
}

// Zoom

function zoomTo(from, to) {
  const whole = Math.max(data.ms, 1);
  const span = Math.min(Math.max(to - from, 2), whole);
  const start = Math.min(Math.max(from, 0), whole - span);
  view = { from: start, to: start + span };
  const hadFocus = chart.contains(document.activeElement);
  hideTip();
  draw();
  if (hadFocus) focusOn(drawn.indexOf(focused) >= 0 ? drawn.indexOf(focused) : 0);
}

function zoom(how) {
  const span = view.to - view.from;
  const middle = focused && inView(focused) ? Math.max(focused.at, view.from) : (view.from + view.to) / 2;
  const share = (middle - view.from) / span;
  if (how === "in") zoomTo(middle - (span / 2) * share, middle + (span / 2) * (1 - share));
  if (how === "out") zoomTo(middle - span * 2 * share, middle + span * 2 * (1 - share));
  if (how === "left") zoomTo(view.from - span / 2, view.to - span / 2);
  if (how === "right") zoomTo(view.from + span / 2, view.to + span / 2);
  if (how === "all") zoomTo(0, data.ms);
}

/** Shows the span of a scenario, with a little around it. */
function showScenario(anchor) {
  const scenario = scenarios.find((each) => each.anchor === anchor);
  if (!scenario) return;
  const margin = Math.max((scenario.end - scenario.at) * 0.15, 20);
  zoomTo(scenario.at - margin, scenario.end + margin);
  document.querySelector("#timeline").scrollIntoView();
  focused = scenario;
  focusOn(drawn.indexOf(scenario));
}

// Pointer and keyboard

const tip = document.createElement("div");
tip.className = "tip";
tip.hidden = true;
// A screen reader reads the mark's own name.
tip.setAttribute("aria-hidden", "true");

function showTip(item) {
  tip.textContent = "";
  for (const line of describe(item).filter(Boolean)) {
    const row = document.createElement("div");
    row.textContent = line;
    tip.append(row);
  }
  chart.append(tip);
  tip.hidden = false;
  const scale = chart.clientWidth / width;
  const x = Math.min(Math.max(xOf(item.at), GUTTER), width - RIGHT) * scale;
  tip.style.left = `${Math.max(0, Math.min(x, chart.clientWidth - tip.offsetWidth - 4))}px`;
  const below = (item.y + 18) * scale;
  const fits = below + tip.offsetHeight < chart.clientHeight;
  tip.style.top = `${fits ? below : Math.max(0, item.y * scale - tip.offsetHeight - 6)}px`;
}

function hideTip() {
  tip.hidden = true;
}

const itemOf = (event) => drawn[event.target.closest?.("[data-i]")?.dataset.i];

function focusOn(index) {
  const element = elementOf(index);
  if (!element) return;
  chart.querySelector('[tabindex="0"]')?.setAttribute("tabindex", "-1");
  element.setAttribute("tabindex", "0");
  element.focus({ preventScroll: true });
}

/** The next mark of the same lane in that direction. */
function along(direction) {
  const lane = drawn
    .filter((item) => item.lane === focused.lane)
    .toSorted((a, b) => a.at - b.at || a.row - b.row);
  return lane[lane.indexOf(focused) + direction];
}

/** The mark of the next lane that has one, which is nearest in time. */
function across(direction) {
  for (let lane = focused.lane + direction; lane >= 0 && lane <= lanes.length; lane += direction) {
    const there = drawn.filter((item) => item.lane === lane);
    if (there.length > 0)
      return there.reduce((best, item) => (distance(item) < distance(best) ? item : best));
  }
  return undefined;
}

const distance = (item) =>
  Math.max(item.at - focused.at, focused.at - item.end, 0) + Math.abs(item.at - focused.at) / 1e6;

function scenarioOf(item) {
  if (item.kind === "scenario") return item;
  const makers = item.sandbox >= 0 ? scenariosOf(item.sandbox) : [];
  return (
    makers[0] ??
    scenarios.find(({ stack, at, end }) => stack === item.stack && at <= item.at && end >= item.at)
  );
}

function open(item) {
  const scenario = scenarioOf(item);
  if (!scenario) return;
  if (location.hash === `#${scenario.anchor}`) unfold();
  else location.hash = scenario.anchor;
}

const KEYS = {
  ArrowRight: () => along(1),
  ArrowLeft: () => along(-1),
  ArrowDown: () => across(1),
  ArrowUp: () => across(-1),
  Home: () => drawn.filter(({ lane }) => lane === focused.lane).reduce((a, b) => (b.at < a.at ? b : a)),
  End: () => drawn.filter(({ lane }) => lane === focused.lane).reduce((a, b) => (b.at >= a.at ? b : a)),
};

chart.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || !focused) return;
  const zooms = { "+": "in", "=": "in", "-": "out", 0: "all" };
  if (zooms[event.key]) zoom(zooms[event.key]);
  else if (event.key === "Enter") open(focused);
  else if (event.key === "Escape") hideTip();
  else if (KEYS[event.key]) {
    const next = KEYS[event.key]();
    if (next) focusOn(drawn.indexOf(next));
  } else return;
  event.preventDefault();
});
chart.addEventListener("focusin", (event) => {
  const item = itemOf(event);
  if (!item) return;
  focused = item;
  showTip(item);
});
chart.addEventListener("focusout", hideTip);
chart.addEventListener("pointerover", (event) => {
  const item = itemOf(event);
  if (item) showTip(item);
});
chart.addEventListener("pointerout", (event) => itemOf(event) && hideTip());

let dragFrom;
const pointerX = (event) =>
  ((event.clientX - chart.getBoundingClientRect().left) / chart.clientWidth) * width;

chart.addEventListener("pointerdown", (event) => {
  if (event.button === 0 && event.pointerType !== "touch") dragFrom = pointerX(event);
});
addEventListener("pointermove", (event) => {
  const brush = chart.querySelector(".brush");
  if (dragFrom === undefined || !brush) return;
  const [from, to] = [dragFrom, pointerX(event)].toSorted((a, b) => a - b);
  brush.setAttribute("x", f(Math.max(from, GUTTER)));
  brush.setAttribute("width", f(Math.max(to - Math.max(from, GUTTER), 0)));
});
addEventListener("pointerup", (event) => {
  if (dragFrom === undefined) return;
  const [from, to] = [dragFrom, pointerX(event)].toSorted((a, b) => a - b);
  dragFrom = undefined;
  if (to - from > 6) return zoomTo(timeAt(Math.max(from, GUTTER)), timeAt(to));
  chart.querySelector(".brush")?.setAttribute("width", "0");
  const item = itemOf(event);
  if (item?.kind === "scenario" || item?.kind === "call") open(item);
});
chart.addEventListener("dblclick", () => zoom("all"));

// The rest of the page

/** Unfolds what the address leads to, even if the filters had hidden it. */
function unfold() {
  const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!target) return;
  if (target.hidden) clearFilters();
  if (target instanceof HTMLDetailsElement) target.open = true;
  target.scrollIntoView();
  const focusable = target.querySelector("summary, a");
  if (focusable) focusable.focus({ preventScroll: true });
}

document.querySelector("#tools").addEventListener("click", (event) => {
  const how = event.target.dataset.zoom;
  if (how) zoom(how);
});
document.addEventListener("click", (event) => {
  const anchor = event.target.dataset?.show;
  if (anchor) showScenario(anchor);
});
form.addEventListener("input", applyFilters);
form.querySelector("button").addEventListener("click", clearFilters);
form.addEventListener("submit", (event) => event.preventDefault());
addEventListener("hashchange", unfold);

/** So many lines of a log are printed. */
const PRINTED_LINES = 15;
/**
 * On paper the timeline comes first, and a failure is unfolded with its calls and the end of each log: all of the bodies
 * and logs would be dozens of pages. What takes it back is done after that.
 */
let undo = [];
addEventListener("beforeprint", () => {
  if (undo.length > 0) return;
  const [failures, timeline] = ["#failures", "#timeline"].map((name) => document.querySelector(name));
  failures.before(timeline);
  undo = [() => failures.after(timeline)];
  for (const details of document.querySelectorAll(".card:not([open]), .card .proof:not(.message, [open])")) {
    details.open = true;
    undo.push(() => (details.open = false));
  }
  for (const log of document.querySelectorAll(".card .lines > pre")) {
    const text = log.textContent;
    log.textContent = text.split("\n").slice(-PRINTED_LINES).join("\n");
    undo.push(() => (log.textContent = text));
  }
});
addEventListener("afterprint", () => {
  for (const step of undo.splice(0)) step();
});

for (const element of document.querySelectorAll("#filters, #tools, #keys, .show")) element.hidden = false;
applyFilters();
unfold();
let drawnAt = chart.clientWidth;
new ResizeObserver(() => {
  if (chart.clientWidth === drawnAt) return;
  drawnAt = chart.clientWidth;
  zoomTo(view.from, view.to);
}).observe(chart);
