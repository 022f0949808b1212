// SPDX-License-Identifier: Apache-2.0

/**
 * A run as one HTML file that needs nothing else: no network, no folder beside it. All that is text is in the HTML
 * itself, and readable without a script; html/page.js adds the filters and draws the timeline.
 */
import { createHash } from "node:crypto";
import { PLACES } from "../../base/settings.ts";
import { again, type Case, caseOf, detailsOf, type Explanation, explainCase, isWatch } from "../explain.ts";
import css from "./html/page.css" with { type: "text" };
import js from "./html/page.js" with { type: "text" };
import { imageName } from "./junit.ts";
import {
  type CallRecord,
  type EventRecord,
  isRed,
  type Results,
  type ScenarioResult,
  type Verdict,
  VERDICTS,
} from "../model.ts";
import {
  caveat,
  escaped,
  MEANINGS,
  sentenceOf,
  startOf,
  timesOf,
  tookInAll,
  unselectedWords,
  WORDS,
} from "../text.ts";
import { clipped, offset, plural, took } from "../../base/text.ts";
import { markWords } from "../mark-words.ts";

/** The page carries at most so many calls: a longer list would take longer to open than anybody waits. */
export const CALLS_CARRIED = 20_000;
/** What all cards of failures may take together, and one at the most, in characters. */
const ALL_CARDS = 400_000;
const ONE_CARD = 50_000;
/** The same of what is known to fail, which fewer will read. */
const ALL_KNOWN = 60_000;
const ONE_KNOWN = 15_000;
/** Of a card: calls shown, and characters of one body. */
const CARD_CALLS = 40;
const BODY = 1200;

export function html(results: Results): string {
  const red = results.scenarios.filter(({ verdict }) => isRed(verdict));
  const anchors = anchorsOf(results.scenarios);
  const carried = carriedCalls(results.calls);
  const body = [
    header(results, red.length),
    `<main>`,
    filters(results, carried),
    failuresSection(red, results, anchors),
    timelineSection(results, carried),
    scenariosSection(results, anchors),
    `</main>`,
    footer(results),
  ].join("\n");
  const policy = `default-src 'none'; style-src '${hash(css)}'; script-src '${hash(js)}'; base-uri 'none'; form-action 'none'`;
  return [
    `<!doctype html>`,
    `<html lang="en">`,
    `<head>`,
    `<meta charset="utf-8">`,
    `<meta http-equiv="Content-Security-Policy" content="${policy}">`,
    `<meta name="viewport" content="width=device-width, initial-scale=1">`,
    `<meta name="color-scheme" content="light dark">`,
    `<title>${escaped(titleOf(results))}</title>`,
    `<style>${css}</style>`,
    `</head>`,
    `<body>`,
    `<a class="skip-link" href="#scenarios">Skip to all scenarios</a>`,
    body,
    `<script type="application/json" id="data">${inScript(pageData(results, carried, anchors))}</script>`,
    `<script type="module">${js}</script>`,
    `</body>`,
    `</html>`,
    "",
  ].join("\n");
}

/** Text between tags; quotes may stay, and JSON is full of them. */
const content = (text: string): string => escaped(text).replaceAll("&#34;", '"').replaceAll("&#39;", "'");

const hash = (text: string): string => `sha256-${createHash("sha256").update(text).digest("base64")}`;

/** JSON that cannot end the element that holds it. */
const inScript = (value: unknown): string => JSON.stringify(value).replaceAll("<", String.raw`\u003c`);

/** The link to each scenario: its id, unless two have the same. */
function anchorsOf(scenarios: ScenarioResult[]): Map<ScenarioResult, string> {
  const taken = new Set(["failures", "timeline", "scenarios", "data"]);
  const anchors = new Map<ScenarioResult, string>();
  for (const scenario of scenarios) {
    const plain = scenario.id.replaceAll(/[^\w.-]+/g, "-") || "scenario";
    let anchor = plain;
    for (let number = 2; taken.has(anchor); number++) anchor = `${plain}-${number}`;
    taken.add(anchor);
    anchors.set(scenario, anchor);
  }
  return anchors;
}

// Top

function titleOf({ scenarios, counts, run }: Results): string {
  const failed = counts.fail + counts.error;
  // Nothing is known of what was cut off.
  const cut = counts.cut > 0 ? `, ${counts.cut} cut off` : "";
  if (failed > 0) return `${failed} of ${plural(scenarios.length, "scenario")} failed${cut}`;
  if (run.cutOff || cut) return `The run was cut off${cut && `: ${counts.pass} passed${cut}`}`;
  if (counts.pass === 0) return "Nothing was proven";
  return counts.pass === scenarios.length
    ? `All ${plural(counts.pass, "scenario")} passed`
    : `${plural(counts.pass, "scenario")} passed, none failed`;
}

function header(results: Results, red: number): string {
  const { run, machine, contract, leftovers } = results;
  const bad = red > 0 || run.cutOff;
  return `<header class="top">
<p class="over">OpenShell driver harness <span aria-hidden="true">·</span> <time datetime="${escaped(run.startedAt)}">${escaped(startOf(run))}</time> <span aria-hidden="true">·</span> ${took(run.ms)} <span aria-hidden="true">·</span> run ${escaped(run.id)}</p>
<h1 class="${bad ? "bad" : results.counts.pass > 0 ? "good" : ""}">${escaped(titleOf(results))}</h1>
${run.cutOff ? `<p class="note warn"><strong>The run was cut off.</strong> This is what was known by then.</p>` : ""}
${proportions(results)}
<ol class="stack" aria-label="What stood in each place">
${PLACES.map((place) => placeCard(place, results)).join("\n")}
</ol>
${caveat(results) ? `<p class="note">${escaped(caveat(results))}</p>` : ""}
${leftovers.length > 0 ? leftoversNote(leftovers) : ""}
<dl class="facts">
<div><dt>Command</dt><dd><code>${escaped(run.command)}</code></dd></div>
<div><dt>Contract</dt><dd>${escaped(contract)}</dd></div>
<div><dt>Machine</dt><dd>${escaped(`${machine.os} ${machine.arch}, ${plural(machine.cpus, "CPU")}, ${Math.round(machine.memoryMb / 1024)} GB, bun ${machine.bun}`)}</dd></div>
<div><dt>Recorded</dt><dd>${plural(results.calls.length, "call")}, ${plural(sandboxNames(results).size, "sandbox", "sandboxes")}, ${plural(results.marks.length, "fault or restart", "faults and restarts")}</dd></div>
</dl>
</header>`;
}

/** The verdicts as one bar, and as words. */
function proportions({ counts, run }: Results): string {
  const used = VERDICTS.filter((verdict) => counts[verdict] > 0);
  const all = used.reduce((sum, verdict) => sum + counts[verdict], 0);
  let x = 0;
  const bars = used.map((verdict) => {
    const width = (counts[verdict] / all) * 1000;
    const bar = `<rect class="v-${verdict}" x="${x.toFixed(1)}" width="${Math.max(width - 2, 1).toFixed(1)}" height="8"/>`;
    x += width;
    return bar;
  });
  const words = used.map(
    (verdict) =>
      `<li title="${MEANINGS[verdict]}"><span class="dot v-${verdict}" aria-hidden="true"></span> <b>${counts[verdict]}</b> ${WORDS[verdict]}<span class="sr">: ${MEANINGS[verdict]}</span></li>`,
  );
  return `<svg class="proportions" viewBox="0 0 1000 8" preserveAspectRatio="none" aria-hidden="true">${bars.join("")}</svg>
<ul class="counts" aria-label="Verdicts">${words.join("")}${run.unselected ? `<li>${escaped(unselectedWords(run))}</li>` : ""}</ul>`;
}

function placeCard(place: (typeof PLACES)[number], { stack }: Results): string {
  const { real, label, program, image } = stack[place];
  // Of the engine it is its socket, which says nothing.
  const isNews = program && real && place !== "engine" && !label.includes(program);
  const named = isNews ? [`<small>${escaped(program)}</small>`] : [];
  // A digest's first digits tell two images apart; the whole is for whoever wants to pull it.
  const short =
    image &&
    [image.reference === label ? "" : image.reference, image.digest.slice(0, "sha256:".length + 12)]
      .filter(Boolean)
      .join(" ");
  const small = image
    ? [
        ...named,
        `<small title="${escaped(imageName(image))}">${place === "engine" ? "sandboxes: " : ""}${escaped(short!)}</small>`,
      ]
    : named;
  return `<li class="${real ? "real" : "fake"}"><span class="place">${place}</span> <span class="badge">${real ? "real" : "fake"}</span>
<strong>${escaped(label)}</strong>${small.join("")}</li>`;
}

const leftoversNote = (lines: string[]): string =>
  `<details class="note warn"><summary>${plural(lines.length, "thing")} left behind, and removed by force</summary><ul>${lines
    .slice(0, 100)
    .map((line) => `<li><code>${escaped(clipped(line))}</code></li>`)
    .join("")}</ul></details>`;

function footer({ run }: Results): string {
  return `<footer>Made from <code>results.json</code> of run ${escaped(run.id)} by <code>bun harness.ts report --format html</code>. Secrets were redacted before anything was written.</footer>`;
}

// Filters

/** The sandboxes of a run, by id: under the name that their user saw, or was to see. */
function sandboxNames({ phases, calls }: Results): Map<string, string> {
  const names = new Map(phases.map(({ sandbox, name }) => [sandbox, name]));
  for (const { sandbox, request } of calls) {
    const asked = (request as { sandbox?: { name?: unknown } } | null)?.sandbox?.name;
    if (sandbox && typeof asked === "string" && !names.has(sandbox)) names.set(sandbox, asked);
  }
  for (const { sandbox } of calls) if (sandbox && !names.has(sandbox)) names.set(sandbox, sandbox);
  return names;
}

function filters(results: Results, { calls }: Carried): string {
  const { scenarios } = results;
  const used = VERDICTS.filter((verdict) => scenarios.some((scenario) => scenario.verdict === verdict));
  const methods = [...new Set(calls.map(({ method }) => method))].toSorted();
  const names = sandboxNames(results);
  const option = (value: string, label: string) =>
    `<option value="${escaped(value)}">${escaped(label)}</option>`;
  return `<form class="filters" id="filters" aria-label="Filters" hidden>
<label class="grow"><span>Scenario</span><input type="search" name="scenario" placeholder="id or words" autocomplete="off" spellcheck="false"></label>
<label><span>Sandbox</span><select name="sandbox"><option value="">all ${names.size}</option>${[...names].map(([id, name]) => option(id, name)).join("")}</select></label>
<label><span>Method</span><select name="method"><option value="">all ${methods.length}</option>${methods.map((method) => option(method, method)).join("")}</select></label>
<fieldset><legend>Verdict</legend>${used
    .map(
      (verdict) =>
        `<label class="chip"><input type="checkbox" name="verdict" value="${verdict}" checked><span class="dot v-${verdict}" aria-hidden="true"></span>${WORDS[verdict]}</label>`,
    )
    .join("")}</fieldset>
<button type="button">Clear</button>
<output id="shown" aria-live="polite"></output>
</form>`;
}

// Failures

function failuresSection(
  red: ScenarioResult[],
  results: Results,
  anchors: Map<ScenarioResult, string>,
): string {
  if (red.length === 0)
    return `<section id="failures" aria-labelledby="failures-title"><h2 id="failures-title">No failures</h2></section>`;
  const room = Math.min(ONE_CARD, ALL_CARDS / red.length);
  const cards = red.map((scenario, index) =>
    card(caseOf(scenario, results), anchors.get(scenario)!, room, index === 0),
  );
  return `<section id="failures" aria-labelledby="failures-title"><h2 id="failures-title">Failures <span class="number">${red.length}</span></h2>
${cards.join("\n")}
</section>`;
}

function card(one: Case, anchor: string, room: number, open: boolean): string {
  const { scenario, message } = one;
  const { verdict, id, file, line } = scenario;
  const found = explainCase(one);
  const { culprit, sentence } = found;
  return `<details class="card v-${verdict}" id="${anchor}" data-scenario="${anchor}"${open ? " open" : ""}>
<summary><span class="line"><span class="verdict v-${verdict}">${WORDS[verdict]}</span> <span class="id">${escaped(id)}</span> <span class="title">${escaped(sentenceOf(scenario))}</span></span>
<span class="line blame">${culprit === "unclear" ? "" : `<span class="who">${culprit}</span> `}<span>${escaped(sentence)}</span></span></summary>
<div class="body">
${findings(scenario, found, message)}
<p class="next"><b>Next</b> ${inline(found.advice)}</p>
<p class="meta"><code>${escaped(again(scenario))}</code> <span>${escaped(`${file}:${line}`)}</span> <span>${escaped(tookInAll(scenario) + timesOf(scenario))}</span> <a href="#${anchor}" aria-label="Link to ${escaped(id)}">#${anchor}</a> <button type="button" class="show" data-show="${anchor}" hidden>Show in the timeline</button></p>
${proof(one, room)}
</div>
</details>`;
}

function findings(scenario: ScenarioResult, { sentence, lines }: Explanation, message: string): string {
  const { expected, seen, source, harm } = scenario;
  const rows = [
    ...(expected ? [["Expected", `<code>${escaped(clipped(expected, 600))}</code>`]] : []),
    ...(seen ? [["Saw", `<code>${escaped(clipped(seen, 600))}</code>`]] : []),
    ...(source ? [["Source", linked(source)]] : []),
    ...(harm ? [["Users", escaped(harm)]] : []),
  ];
  const list = rows.map(([term, text]) => `<div><dt>${term}</dt><dd>${text}</dd></div>`).join("");
  // What stands beside it already need not be said again.
  const isSaid = expected || sentence.includes(clipped(message, 400));
  const shown = lines.length > 0 || isSaid ? lines : [clipped(message)];
  return `${block(shown)}${list ? `<dl class="findings">${list}</dl>` : ""}`;
}

const block = (lines: string[]): string =>
  lines.some(Boolean) ? `<pre class="evidence">${content(lines.join("\n"))}</pre>` : "";

/** Text whose addresses are links. One that was cut off would lead nowhere. */
const linked = (text: string): string =>
  text
    .split(/(https:\/\/[\w./#?=&%~+:-]{1,500}(?![\w./#?=&%~+:…-]))/)
    .map((part, index) =>
      index % 2 === 1 ? `<a href="${escaped(part)}" rel="noreferrer">${escaped(part)}</a>` : escaped(part),
    )
    .join("");

/** Words with `code` in them. */
const inline = (text: string): string => escaped(text).replace(/`([^`]+)`/g, "<code>$1</code>");

/** What was recorded, folded: calls, containers, logs and the whole message, as much of each as there is room for. */
function proof(one: Case, room: number): string {
  const { scenario, message } = one;
  const calls = callTable(one, room / 2);
  const part = (title: string, lines: string[], characters: number, kind = "lines") => {
    if (lines.length === 0) return "";
    const kept = lastThatFit(lines, characters);
    const note =
      kept.length < lines.length
        ? ` <span class="number">the last ${kept.length} of ${lines.length} lines</span>`
        : ` <span class="number">${lines.length}</span>`;
    return `<details class="proof ${kind}"><summary>${title}${note}</summary><pre tabindex="0" role="region" aria-label="${escaped(`${title}: ${scenario.id}`)}">${content(kept.join("\n"))}</pre></details>`;
  };
  return [
    calls,
    part("Containers, as the engine has them", scenario.engine, room / 10),
    part("Calls from driver to engine", scenario.engineCalls, room / 10),
    part("Gateway’s log", scenario.logs.gateway, room / 6),
    part("Driver’s log", scenario.logs.driver, room / 6),
    part("The whole message", message.split("\n"), room / 10, "message"),
  ].join("\n");
}

function lastThatFit(lines: string[], characters: number): string[] {
  const kept: string[] = [];
  let room = characters;
  for (const line of lines.toReversed()) {
    room -= line.length + 1;
    if (room < 0 && kept.length > 0) break;
    kept.unshift(room < 0 ? clipped(line, 240) : line);
  }
  return kept;
}

function callTable({ scenario, calls, cleaning, marks }: Case, room: number): string {
  if (calls.length + cleaning.length + marks.length === 0) return "";
  const failed = scenario.at + (scenario.failedMs ?? 0);
  const rows = [
    ...(cleaning.length > 0
      ? [
          {
            at: failed,
            row: `<tr class="mark"><td>${offset(failed - scenario.at)}</td><td colspan="4">failed; what follows is cleaning up</td></tr>`,
          },
        ]
      : []),
    ...[...calls, ...cleaning].map((call) => ({ at: call.at, row: callRow(call, scenario.at) })),
    ...calls.flatMap((call) =>
      eventsOf(call, scenario).map((event) => ({ at: event.at, row: eventRow(call, event, scenario.at) })),
    ),
    ...marks.map(({ at, what }) => ({
      at,
      row: `<tr class="mark"><td>${offset(at - scenario.at)}</td><td colspan="4">${escaped(clipped(markWords(what), 300))}</td></tr>`,
    })),
  ].toSorted((a, b) => a.at - b.at);
  let left = room;
  const kept = rows.slice(-CARD_CALLS).filter((_, index, all) => {
    // From the end: what was last counts most.
    left -= all[all.length - 1 - index]!.row.length;
    return left > 0 || index < 3;
  }).length;
  const note = kept < rows.length ? `the last ${kept} of ${rows.length}` : String(rows.length);
  return `<details class="proof" open><summary>Calls between gateway and driver <span class="number">${note}</span></summary>
<div class="scroll" tabindex="0" role="region" aria-label="Calls of ${escaped(scenario.id)}"><table class="calls"><thead><tr><th scope="col">at</th><th scope="col">method</th><th scope="col">status</th><th scope="col">took</th><th scope="col">messages</th></tr></thead><tbody>
${rows
  .slice(-kept)
  .map(({ row }) => row)
  .join("\n")}
</tbody></table></div></details>`;
}

function callRow(call: CallRecord, since: number): string {
  const status = call.status || (isWatch(call) ? "open" : "no answer");
  const kind = status === "OK" ? "ok" : call.status && status !== "CANCELLED" ? "bad" : "open";
  const bodies = [
    ...(isEmpty(call.request) ? [] : [`→ ${bodyText(call.request)}`]),
    ...call.responses
      .slice(0, 5)
      .filter((each) => !isEmpty(each))
      .map((each) => `← ${bodyText(each)}`),
    ...(call.responses.length > 5 ? [`← … ${call.responses.length - 5} more`] : []),
  ];
  const time = call.ms === undefined ? "" : took(call.ms);
  const details = detailsOf(call);
  return `<tr><td>${offset(call.at - since)}</td><td>${escaped(call.method)}</td><td class="s-${kind}">${escaped(status)}</td><td>${time}</td><td>${details && `<span>${escaped(clipped(details, 300))}</span>`}${folded(bodies)}</td></tr>`;
}

/** Bodies of a call, folded unless they are one short line. */
function folded(bodies: string[]): string {
  const [first] = bodies;
  if (first === undefined) return "";
  const short = clipped(first, 72);
  if (bodies.length === 1 && short === first) return `<small>${content(first)}</small>`;
  return `<details><summary>${content(short)}</summary><pre>${content(bodies.join("\n"))}</pre></details>`;
}

/** What a watch told of a scenario's sandboxes in its time. */
const eventsOf = ({ events = [] }: CallRecord, { at, ms, sandboxes }: ScenarioResult): EventRecord[] =>
  events.filter((event) => sandboxes.includes(event.sandbox) && event.at >= at && event.at <= at + ms);

const eventRow = ({ method }: CallRecord, { at, event }: EventRecord, since: number): string =>
  `<tr><td>${offset(at - since)}</td><td>${escaped(method)}</td><td class="s-open">event</td><td></td><td>${folded([`← ${bodyText(event)}`])}</td></tr>`;

const isEmpty = (body: unknown): boolean =>
  body === undefined || body === null || (typeof body === "object" && Object.keys(body).length === 0);

function bodyText(body: unknown): string {
  const text = JSON.stringify(body) ?? "";
  return text.length > BODY ? `${text.slice(0, BODY)}… (${text.length - BODY} more characters)` : text;
}

// Timeline

function timelineSection(results: Results, { left }: Carried): string {
  const note =
    left > 0
      ? `<p class="note">${plural(left, "call")} of ${results.calls.length.toLocaleString("en")} are not in this page: those that ended with OK and took the least time. <code>results.json</code> has them all.</p>`
      : "";
  return `<section id="timeline" aria-labelledby="timeline-title"><h2 id="timeline-title">Timeline</h2>
<noscript><p class="note">The timeline is drawn by a script. Everything else on this page is readable without it.</p></noscript>
<div class="tools" id="tools" hidden>
<div class="buttons" role="group" aria-label="Zoom">
<button type="button" data-zoom="in" aria-label="Zoom in" title="Zoom in (+)">+</button><button type="button" data-zoom="out" aria-label="Zoom out" title="Zoom out (−)">−</button><button type="button" data-zoom="left" aria-label="Earlier" title="Earlier">←</button><button type="button" data-zoom="right" aria-label="Later" title="Later">→</button><button type="button" data-zoom="all" title="The whole run (0)">Whole run</button>
</div>
<p id="range"></p>
</div>
<div id="chart"></div>
<p id="drawn" class="hint"></p>
<p class="hint" id="keys" hidden>Drag over a span of time to zoom into it. With the keyboard: <kbd>Tab</kbd> to the picture, <kbd>←</kbd> <kbd>→</kbd> along a lane, <kbd>↑</kbd> <kbd>↓</kbd> between lanes, <kbd>+</kbd> <kbd>−</kbd> <kbd>0</kbd> to zoom, <kbd>Enter</kbd> to the scenario.</p>
<ul class="legend" aria-label="Legend"><li><i class="k ok"></i>call, OK</li><li><i class="k bad"></i>call, refused</li><li><i class="k open"></i>call without an answer, or a watch</li><li><i class="k provisioning"></i>provisioning</li><li><i class="k ready"></i>ready</li><li><i class="k stopped"></i>stopped</li><li><i class="k deleting"></i>stopping, deleting</li><li><i class="k error"></i>error</li><li><i class="k flag"></i>fault or restart</li></ul>
${note}
</section>`;
}

/** The calls that the page has, and how many it leaves out. */
interface Carried {
  calls: CallRecord[];
  left: number;
}

/** All calls, or those that tell most: what did not end with OK, then what took longest. */
function carriedCalls(calls: CallRecord[]): Carried {
  if (calls.length <= CALLS_CARRIED) return { calls, left: 0 };
  const weight = ({ status, ms = Infinity }: CallRecord) => (status === "OK" ? ms : Infinity);
  const kept = calls
    .toSorted((a, b) => (weight(a) === weight(b) ? 0 : weight(b) - weight(a)))
    .slice(0, CALLS_CARRIED);
  return { calls: kept.toSorted((a, b) => a.at - b.at), left: calls.length - kept.length };
}

/**
 * What page.js draws: lists of numbers, with texts by their place in a list, since names repeated 20,000 times would
 * make a page of many megabytes. Times are in milliseconds, -1 for none.
 */
function pageData(results: Results, { calls }: Carried, anchors: Map<ScenarioResult, string>) {
  const texts = indexer();
  const tenth = (ms: number | undefined) => (ms === undefined ? -1 : Math.round(ms * 10) / 10);
  const names = sandboxNames(results);
  return {
    ms: results.run.ms,
    startedAt: Date.parse(results.run.startedAt),
    scenarios: results.scenarios.map((each) => [
      anchors.get(each),
      each.title,
      each.verdict,
      tenth(each.at),
      tenth(each.ms),
      each.stack,
      each.sandboxes.map(texts.index),
    ]),
    processes: results.processes.map((each) => [
      each.name,
      each.stack,
      tenth(each.at),
      tenth(each.readyMs),
      tenth(each.ms),
      each.ending ?? "",
      each.pid,
    ]),
    // Seven numbers each: stack, method, at, ms, status, sandbox, details.
    calls: calls.flatMap((each) => [
      each.stack,
      texts.index(each.method),
      tenth(each.at),
      tenth(each.ms),
      texts.index(each.status),
      texts.index(each.sandbox),
      texts.index(clipped(detailsOf(each), 160)),
    ]),
    phases: results.phases.map((each) => [each.stack, texts.index(each.sandbox), each.phase, tenth(each.at)]),
    marks: results.marks.map((each) => [each.stack, tenth(each.at), clipped(markWords(each.what), 160)]),
    names: Object.fromEntries([...names].map(([sandbox, name]) => [texts.index(sandbox), name])),
    texts: texts.all,
  };
}

function indexer() {
  const all: string[] = [];
  const places = new Map<string, number>();
  const index = (text: string): number => {
    let place = places.get(text);
    if (place === undefined) {
      place = all.push(text) - 1;
      places.set(text, place);
    }
    return place;
  };
  return { all, index };
}

// All scenarios

function scenariosSection(results: Results, anchors: Map<ScenarioResult, string>): string {
  const { scenarios } = results;
  const known = scenarios.filter(({ verdict }) => verdict === "known").length;
  const room = Math.min(ONE_KNOWN, ALL_KNOWN / Math.max(known, 1));
  const suites = [...Map.groupBy(scenarios, ({ suite }) => suite)];
  const longest = Math.max(1, ...scenarios.map(({ ms }) => ms));
  const tables = suites.map(
    ([
      suite,
      of,
    ]) => `<table class="scenarios"><caption>${escaped(suite)} <span class="number">${of.length}</span></caption>
<thead><tr><th scope="col">verdict</th><th scope="col">id</th><th scope="col">requirement</th><th scope="col" class="right">took</th></tr></thead><tbody>
${of.map((scenario) => scenarioRow(scenario, anchors.get(scenario)!, longest, scenario.verdict === "known" ? proof(caseOf(scenario, results), room) : "")).join("\n")}
</tbody></table>`,
  );
  return `<section id="scenarios" aria-labelledby="scenarios-title"><h2 id="scenarios-title">All scenarios <span class="number">${scenarios.length}</span></h2>
${tables.join("\n")}
</section>`;
}

function scenarioRow(scenario: ScenarioResult, anchor: string, longest: number, recorded: string): string {
  const { verdict, id, ms, reason, file, line } = scenario;
  const red = isRed(verdict);
  // A failure's own card has the anchor.
  const own = red ? "" : ` id="${anchor}"`;
  const aside = reasonAside(verdict, reason);
  const width = ((ms / longest) * 60).toFixed(1);
  return `<tr${own} data-scenario="${anchor}"><td><span class="verdict v-${verdict}">${WORDS[verdict]}</span></td><td class="id"><a href="#${anchor}">${escaped(id)}</a></td><td title="${escaped(`${file}:${line}`)}">${escaped(sentenceOf(scenario))}${aside}${recorded && `<details class="recorded"><summary>What was recorded</summary>${recorded}</details>`}</td><td class="right">${took(ms)}<svg viewBox="0 0 60 3" class="bar" aria-hidden="true"><rect width="${width}" height="3"/></svg></td></tr>`;
}

function reasonAside(verdict: Verdict, reason: string): string {
  if (verdict === "pass" || isRed(verdict) || !reason) return "";
  return `<small>${linked(clipped(reason))}</small>`;
}
