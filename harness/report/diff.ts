// SPDX-License-Identifier: Apache-2.0

/** What differs between two runs: what a maintainer reads when one part of the stack is exchanged. */
import { PLACES } from "../base/settings.ts";
import { isRed, type Results, type ScenarioResult, type Verdict } from "./model.ts";
import { clipped, plural, took } from "../base/text.ts";
import { sentenceOf, WORDS } from "./text.ts";

export interface Diff {
  /** "driver: openshell-driver-podman 0.0.111 → 0.0.112". */
  parts: string[];
  /** Scenarios that both have, and whose verdicts differ; what got worse first. */
  verdicts: VerdictChange[];
  added: ScenarioResult[];
  removed: ScenarioResult[];
  /** How much longer scenarios took in the second run on the whole: the machine's doing, or a change that all feel. */
  pace: number;
  /** Scenarios that became slower or faster than that by more than noise; the biggest change first. */
  durations: DurationChange[];
  /** The same for the calls, by method: their medians. */
  methods: DurationChange[];
  /** Something got worse: a scenario turned red, or a red one was added. */
  worse: boolean;
}

export interface VerdictChange {
  scenario: ScenarioResult;
  from: Verdict;
  to: Verdict;
}

export interface DurationChange {
  name: string;
  from: number;
  to: number;
}

/** A change under this many milliseconds is noise, whatever its ratio. */
const LEAST_MS = { scenario: 250, method: 10 };
/** So is one under this ratio; and one within four times the usual spread of all ratios. */
const LEAST_RATIO = 1.5;
const SPREADS = 4;
/** A median needs so many calls. */
const LEAST_CALLS = 5;

export function diff(a: Results, b: Results): Diff {
  const before = new Map(a.scenarios.map((scenario) => [key(scenario), scenario]));
  const after = new Map(b.scenarios.map((scenario) => [key(scenario), scenario]));
  const both = b.scenarios.flatMap((to) => {
    const from = before.get(key(to));
    return from ? [{ from, to }] : [];
  });
  const verdicts = both
    .filter(({ from, to }) => from.verdict !== to.verdict)
    .map(({ from, to }) => ({ scenario: to, from: from.verdict, to: to.verdict }))
    .toSorted((one, other) => rank(one) - rank(other));
  const added = b.scenarios.filter((scenario) => !before.has(key(scenario)));
  // Only what ended in the same way twice took its time for the same work.
  const timed = both
    .filter(({ from, to }) => from.verdict === "pass" && to.verdict === "pass")
    .map(({ from, to }) => ({ name: to.title, from: from.ms, to: to.ms }));
  const { pace, changes } = beyondNoise(timed, LEAST_MS.scenario);
  return {
    parts: differentParts(a, b),
    verdicts,
    added,
    removed: a.scenarios.filter((scenario) => !after.has(key(scenario))),
    pace,
    durations: changes,
    methods: beyondNoise(medians(a, b), LEAST_MS.method).changes,
    worse:
      verdicts.some(({ from, to }) => isRed(to) && !isRed(from)) ||
      added.some(({ verdict }) => isRed(verdict)),
  };
}

const key = ({ suite, id }: ScenarioResult): string => `${suite}/${id}`;

/** What got worse first, then what got better, then the rest. */
const rank = ({ from, to }: VerdictChange): number => (isRed(to) && !isRed(from) ? 0 : isRed(from) ? 1 : 2);

/** Everything that was not the same and may explain the rest. */
function differentParts(a: Results, b: Results): string[] {
  const of = ({ stack, contract, machine }: Results): Record<string, string> => ({
    ...Object.fromEntries(
      PLACES.flatMap((place) => [
        [
          place,
          `${stack[place].label}${stack[place].real ? "" : " (not real)"}`.replace("fake (not real)", "fake"),
        ],
        [`${place}'s image`, stack[place].image?.digest || stack[place].image?.reference || "none"],
      ]),
    ),
    contract,
    machine: `${machine.os} ${machine.arch}, ${plural(machine.cpus, "CPU")}`,
    bun: machine.bun,
  });
  const [from, to] = [of(a), of(b)];
  return Object.keys(to).flatMap((name) =>
    from[name] === to[name] ? [] : [`${name}: ${from[name]} → ${to[name]}`],
  );
}

/**
 * Which durations changed by more than noise. One run has one number a scenario, so noise is told from the others: the
 * ratios of all pairs have a median, the pace of the second run, and a spread around it (the median deviation, which
 * single outliers do not move). A change counts when it is far out of that spread and long enough for a person to care.
 */
function beyondNoise(pairs: DurationChange[], leastMs: number): { pace: number; changes: DurationChange[] } {
  // What takes next to no time has ratios that mean nothing.
  const ratios = pairs.map(({ from, to }) => Math.log((to + leastMs / 5) / (from + leastMs / 5)));
  const pace = median(ratios);
  const spread = 1.4826 * median(ratios.map((ratio) => Math.abs(ratio - pace)));
  const threshold = Math.max(Math.log(LEAST_RATIO), SPREADS * spread);
  const changes = pairs.filter(({ from, to }, index) => {
    const isFar = Math.abs(ratios[index]! - pace) > threshold;
    return isFar && Math.abs(to - from * Math.exp(pace)) > leastMs;
  });
  return { pace: Math.exp(pace), changes: changes.toSorted((one, other) => weight(other) - weight(one)) };
}

const weight = ({ from, to }: DurationChange): number => Math.abs(to - from);

function median(values: number[]): number {
  if (values.length === 0) return 0;
  const sorted = values.toSorted((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2;
}

function medians(a: Results, b: Results): DurationChange[] {
  const of = ({ calls }: Results) => {
    const done = calls.filter(({ status, method }) => status === "OK" && method !== "WatchSandboxes");
    return Map.groupBy(done, ({ method }) => method);
  };
  const [before, after] = [of(a), of(b)];
  return [...after].flatMap(([name, calls]) => {
    const earlier = before.get(name) ?? [];
    if (Math.min(calls.length, earlier.length) < LEAST_CALLS) return [];
    return [
      { name, from: median(earlier.map(({ ms = 0 }) => ms)), to: median(calls.map(({ ms = 0 }) => ms)) },
    ];
  });
}

/** As text: what differs in the stack first, then what got worse. */
export function describeDiff(found: Diff, a: Results, b: Results): string {
  const { parts, verdicts, added, removed, pace, durations, methods } = found;
  const name = ({ run, scenarios }: Results) =>
    `run ${run.id}, ${run.startedAt.slice(0, 16)}Z, ${plural(scenarios.length, "scenario")}`;
  const cut = [a, b]
    .filter(({ run }) => run.cutOff)
    .map(({ run }) => `Run ${run.id} was cut off: what is missing there says nothing.`);
  const factor = pace >= 1 ? `${pace.toFixed(2)} × as long` : `${(1 / pace).toFixed(2)} × as fast`;
  const paced =
    Math.abs(Math.log(pace)) > Math.log(1.15)
      ? [`On the whole scenarios went ${factor}; below, that is taken out.`]
      : [];
  return [
    `from  ${name(a)}`,
    `to    ${name(b)}`,
    ...cut,
    ...part("What differs in the stack", parts, "nothing: the same parts, contract and machine"),
    ...part(
      "Verdicts that changed",
      verdicts.map(
        ({ scenario, from, to }) =>
          `${WORDS[from].padEnd(7)} → ${WORDS[to].padEnd(7)} ${scenario.id} ${sentenceOf(scenario)}${scenario.reason ? `\n${" ".repeat(18)} ${clipped(scenario.reason, 140)}` : ""}`,
      ),
      "none",
    ),
    ...(added.length > 0 ? part("Only in the second run", added.map(shortly), "") : []),
    ...(removed.length > 0 ? part("Only in the first run", removed.map(shortly), "") : []),
    ...part("Durations that changed beyond noise", [...paced, ...durations.map(change)], "none"),
    ...(methods.length > 0 ? part("Calls whose median changed beyond noise", methods.map(change), "") : []),
    "",
    found.worse ? "It got worse." : "Nothing got worse.",
  ].join("\n");
}

/** More of a kind says no more. */
const MOST_LINES = 40;

function part(title: string, lines: string[], none: string): string[] {
  const rest = lines.length > MOST_LINES ? [`  …and ${lines.length - MOST_LINES} more`] : [];
  const shown = lines.slice(0, MOST_LINES).map((line) => `  ${line}`);
  return ["", title, ...(shown.length > 0 ? shown : [`  ${none}`]), ...rest];
}

const shortly = (scenario: ScenarioResult): string =>
  `${WORDS[scenario.verdict].padEnd(7)} ${scenario.id} ${sentenceOf(scenario)}`;

const change = ({ name, from, to }: DurationChange): string =>
  `${to > from ? "slower" : "faster"}  ${took(from).padStart(9)} → ${took(to).padStart(9)}  ${name}`;
