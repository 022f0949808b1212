// SPDX-License-Identifier: Apache-2.0

/** A failure on the terminal, in at most one screen: who broke which rule, the lines that show it, and what to do. */
import {
  again,
  type Case,
  caseOf,
  callLine,
  type Culprit,
  diffOf,
  explain,
  explainCase,
  messageOf,
  shortLog,
} from "./explain.ts";
import {
  type CallRecord,
  type Mark,
  type ProcessSpan,
  type Results,
  type ScenarioResult,
  isRed,
} from "./model.ts";
import { readable, withoutCommands } from "../base/readable.ts";
import { clipped, offset, shellQuoted } from "../base/text.ts";
import { markWords } from "./mark-words.ts";
import { sentenceOf, timesOf, tookInAll, WORDS } from "./text.ts";

/** The height of a screen, in lines. */
export const SCREEN_LINES = 40;
/** Longer lines would wrap, and make a screen more than a screen. A terminal may be narrower. */
const WIDTH = 160;
const SHOWN = { message: 6, harm: 3, calls: 8, engine: 3, engineCalls: 4, log: 4 };

export interface TerminalOptions {
  colour?: boolean;
  /** Of the terminal, in columns. */
  width?: number;
  /** What else ran, and what was done to it on purpose: with them more can be told. */
  scenarios?: ScenarioResult[];
  processes?: ProcessSpan[];
  marks?: Mark[];
}

/** After so many one looks at the report. */
const EXPLAINED = 5;
const LEFT = 10;

/** What stands before the details in the line of a call. */
const CALL = /^[+−][\d.]+ s {2}\w+ → (?:\w+ after [^:]*|no answer|open)(?:: )?/;

/** Of a sandbox or a container: it alone makes no other cause. */
const ID = /\b[\da-f]{8}[\da-f-]{4,}\b/g;

/** All failures of a run: a screen for each, but for those that have the same cause as one before; empty without any. */
export function explainAll(results: Results, colour: boolean, width = WIDTH): string {
  const red = results.scenarios.filter(({ verdict }) => isRed(verdict));
  const causes = Map.groupBy(red, (scenario) => {
    const { culprit, sentence, lines } = explain(scenario, results);
    const [evidence = ""] = lines.map((line) => line.replace(CALL, "").replace(/…$/, ""));
    // Where nothing is known of the cause, or what shows it is no word of the scenario's own, it may be another one.
    const isItsOwn = evidence !== "" && messageOf(scenario).includes(evidence);
    if (culprit === "unclear" || !isItsOwn) return scenario.id;
    return `${culprit} ${sentence} ${evidence.replace(ID, "ID")}`;
  });
  const screens = [...causes.values()].slice(0, EXPLAINED).map(([first, ...same]) => {
    const screen = explainOnTerminal(first!, results.calls, { ...results, colour, width });
    const ids = same.map(({ id }) => id).join(", ");
    return same.length > 0 ? `${screen}\n  The same: ${ids}` : screen;
  });
  const more = [...causes.values()].slice(EXPLAINED).flat();
  const rest = `${more.length} more are not explained here: ${more.map(({ id }) => id).join(", ")}`;
  return [...screens, ...(more.length > 0 ? [wrapped(rest, width).join("\n")] : [])].join("\n\n");
}

/** What a run left behind, as far as it fits on a screen beside the failures. */
export function leftOnTerminal(left: string[]): string {
  const more = left.length - LEFT;
  return [
    "Left behind by this run, and removed where it could be:",
    ...left.slice(0, LEFT).map((line) => `  ${cut(clipped(readable(line)), WIDTH - 2)}`),
    ...(more > 0 ? [`  and ${more} more, which the report has`] : []),
  ].join("\n");
}

/**
 * The explanation of a scenario's failure, at most `SCREEN_LINES` lines long.
 * @param calls all calls of the run; those of the scenario are found in it.
 */
export function explainOnTerminal(
  scenario: ScenarioResult,
  calls: CallRecord[],
  options: TerminalOptions = {},
): string {
  const { scenarios, processes = [], marks = [] } = options;
  const width = Math.min(options.width ?? WIDTH, WIDTH);
  const paint = options.colour ? painted : (_: Colour, text: string) => text;
  const one = caseOf(scenario, { scenarios, calls, processes, marks });
  const { culprit, sentence, lines, advice } = explainCase(one);
  const red = isRed(scenario.verdict);
  const logOf = (who: "gateway" | "driver") =>
    [who, "unclear", "harness"].includes(culprit) ? shortLog(scenario.logs[who]) : [];
  const where = `${scenario.file}:${scenario.line} · ${tookInAll(scenario)}${timesOf(scenario)}${scenario.source && ` · ${scenario.source}`}`;
  const head = `${WORDS[scenario.verdict]} ${scenario.id}`;
  const said = [
    `${paint(red ? "red" : "yellow", head)} ${paint("bold", cut(sentenceOf(scenario), width - head.length - 1))}`,
    paint("dim", cut(`  ${where}`, width)),
    "",
    ...wrapped(sentence, width - (culprit === "unclear" ? 2 : NAMES[culprit].length + 5)).map(
      (line, index) =>
        `  ${culprit === "unclear" ? "" : index > 0 ? " ".repeat(NAMES[culprit].length + 3) : `${paint("inverse", ` ${NAMES[culprit]} `)} `}${paint("bold", line)}`,
    ),
    ...lines.map((line) => `    ${line}`),
    ...finding(scenario, [sentence, ...lines]),
    ...section("Calls between gateway and driver", callLines(one), SHOWN.calls, paint),
    ...section("Containers, as the engine has them", scenario.engine, SHOWN.engine, paint),
    ...section("Calls from driver to engine", scenario.engineCalls, SHOWN.engineCalls, paint),
    ...section("Gateway's log", logOf("gateway"), SHOWN.log, paint),
    ...section("Driver's log", logOf("driver"), SHOWN.log, paint),
  ];
  const toDo = [
    "",
    ...(scenario.harm ? labelled("Users: ", scenario.harm, width).slice(0, SHOWN.harm) : []),
    ...(advice ? labelled("Next:  ", advice, width) : []),
  ];
  const screen = [...said.slice(0, SCREEN_LINES - toDo.length - 1), ...toDo]
    .map((line) => cut(line.split("\n", 1)[0]!, width))
    .concat(`  Again: ${driverOf(scenario)}${again(scenario)}`)
    .join("\n");
  // What a line began with, the frame of a log say, may have been taken away.
  return withoutCommands(screen);
}

/** The setting without which another driver would be tried again, as a shell takes it. */
function driverOf({ suite }: ScenarioResult): string {
  const command = process.env.OPENSHELL_DRIVER_CMD;
  if (!command || suite === "gateway-adapter") return "";
  return `OPENSHELL_DRIVER_CMD=${readable(shellQuoted(command))} `;
}

const NAMES: Record<Exclude<Culprit, "unclear">, string> = {
  gateway: "gateway",
  driver: "driver",
  engine: "engine",
  supervisor: "supervisor",
  harness: "harness",
};

/** Expected and seen where they are known, else the message, unless it was shown already. */
function finding(scenario: ScenarioResult, shown: string[]): string[] {
  const { expected, seen, verdict } = scenario;
  if (verdict === "cut") return [];
  const diff = diffOf(messageOf(scenario));
  const isNews = (line: string) => /^[-+] /.test(line) && !shown.includes(clipped(line));
  if (diff?.some(isNews)) return ["", ...diff.slice(0, SHOWN.message).map((line) => `  ${line}`)];
  if (diff) return [];
  if (shown.some((line) => expected && line.includes(expected))) return [];
  if (expected) return ["", `  expected  ${clipped(expected)}`, `  saw       ${clipped(seen)}`];
  const plain = (line: string) => line.replace(/^\s{0,200}\|?\s{0,200}/, "").trim();
  const message = messageOf(scenario)
    .split("\n")
    .filter((line) => plain(line) !== "" && !shown.some((each) => each.includes(plain(line).slice(0, 150))));
  // A heading, and all that it headed was shown.
  if (message.length === 1 && message[0]!.endsWith(":")) return [];
  return message.length > 0 ? ["", ...message.slice(0, SHOWN.message).map((line) => `  ${line}`)] : [];
}

/** The calls, without a watch that was open before and after, and among them what was done on purpose. */
function callLines({ scenario, calls, marks }: Case): string[] {
  const { at: begin, ms: length } = scenario;
  const isNews = ({ at, ms = Infinity }: CallRecord) => at >= begin || at + ms <= begin + length;
  const items = [
    ...calls.filter(isNews).map((call) => ({ at: call.at, text: callLine(call, scenario.at) })),
    ...marks.map(({ at, what }) => ({ at, text: `${offset(at - scenario.at)}  ── ${markWords(what)}` })),
  ];
  return items.toSorted((a, b) => a.at - b.at).map(({ text }) => text);
}

function section(title: string, lines: string[], most: number, paint: Paint): string[] {
  if (lines.length === 0) return [];
  const more = lines.length > most ? `, the last ${most} of ${lines.length}` : "";
  return ["", paint("dim", `  ${title}${more}:`), ...lines.slice(-most).map((line) => `    ${line}`)];
}

const COLOURS = { red: 31, yellow: 33, bold: 1, dim: 2, inverse: 7 } as const;
type Colour = keyof typeof COLOURS;
type Paint = (colour: Colour, text: string) => string;

const painted: Paint = (colour, text) => `\u001b[${COLOURS[colour]}m${text}\u001b[0m`;

/** A text in lines of at most that width. */
function wrapped(text: string, width: number): string[] {
  const lines: string[] = [];
  for (const word of text.split(" ")) {
    const longer = `${lines.at(-1)} ${word}`;
    if (lines.length > 0 && longer.length <= width) lines[lines.length - 1] = longer;
    else lines.push(word);
  }
  return lines;
}

/** A text behind a label. */
const labelled = (label: string, text: string, width: number): string[] =>
  wrapped(text, width - label.length - 2).map(
    (line, index) => `  ${index === 0 ? label : " ".repeat(label.length)}${line}`,
  );

/** Cut to the width of a screen, so that a coloured line does not lose the code that ends its colour. */
function cut(line: string, width: number): string {
  if (line.length <= width || line.includes("\u001b")) return line;
  return `${line.slice(0, width - 1)}…`;
}
