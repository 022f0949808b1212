// SPDX-License-Identifier: Apache-2.0

/**
 * `mutants [--only PATTERN] [--each]`: proves that the checks of the driver contract bite.
 *
 * Each mutant, a driver broken on purpose, is checked by every check that makes a call which the mutant breaks. It must
 * be found by those that it names, and by no other; and every MUST must find at least one mutant.
 *
 * What a check must not find it is asked about together, as one driver that is broken in many ways: when it finds
 * nothing, there is nothing to be found, provided that no mutant hides another. Else they are told apart by halves.
 * With `--each` every mutant is checked alone, as long as that takes.
 */
import { ROOT } from "../base/root.ts";
import { join } from "node:path";
import type { Command } from "../command-line.ts";
import { EXIT, HarnessError } from "../base/errors.ts";
import { within } from "../base/waiting.ts";
import { withKeeper } from "../runtime/connection.ts";
import { say } from "../base/readable.ts";
import { describeParts } from "../runtime/places.ts";
import { type Check, checks } from "../conformance/check.ts";
import { setPatience } from "../conformance/finding.ts";
import { loadChecks } from "../conformance/load.ts";
import { composed, type Mutant, mutants } from "../conformance/mutant.ts";
import { type Footprint, footprint, type Lives, sideBySide } from "../conformance/replay.ts";
import { type Outcome, runOne } from "../conformance/runner.ts";
import { startSubject } from "../conformance/subject.ts";
import { type Subject, Trial } from "../conformance/trial.ts";
import { type Interceptors, Tap } from "../runtime/faults/tap.ts";
import { plural } from "../base/text.ts";

/** Mutants that answer nothing must not cost a check its whole deadline; what looks odd is looked at again with all of it. */
const PATIENCE = 0.1;

/** What came of a mutant. */
interface Result {
  mutant: Mutant;
  found: string[];
  /** How many checks have not been run yet. */
  left: number;
  ms: number;
}

export const command: Command = async (settings, _args, { only, each }) => {
  await loadChecks();
  for (const file of [...new Bun.Glob("*.ts").scanSync(MUTANTS)].toSorted())
    await import(join(MUTANTS, file));
  const pattern = patternOf(only);
  const chosen = mutants.filter(({ name, foundBy }) => pattern.test([name, ...foundBy].join(" ")));
  if (chosen.length === 0)
    throw new HarnessError(`--only ${only}: no mutant has that in its name or its checks`);
  const began = performance.now();
  const { result, left } = await withKeeper(settings, async (keeper) => {
    console.log(describeParts((await keeper.call("hello")).parts));
    const [shared, alone] = await Promise.all([
      startSubject(keeper, settings),
      startSubject(keeper, settings),
    ]);
    return hunt(chosen, { shared, alone }, each !== undefined);
  });
  for (const line of left) say(`left behind, removed: ${line}`);
  const problems = [...result, ...(only ? [] : unproven(chosen))];
  for (const problem of problems) say(problem);
  const seconds = ((performance.now() - began) / 1_000).toFixed(1);
  console.log(
    `mutants: ${plural(chosen.length, "mutant")}, ${plural(problems.length, "problem")}, ${seconds} s`,
  );
  if (problems.length > 0) return EXIT.failed;
  return left.length > 0 ? EXIT.leftovers : EXIT.ok;
};

function patternOf(only = ""): RegExp {
  try {
    return new RegExp(only);
  } catch (error) {
    throw new HarnessError(`--only ${only}: ${(error as Error).message}`);
  }
}

const MUTANTS = join(ROOT, "scenarios", "driver-contract", "mutants");

/** Checks all mutants. Resolves with what is wrong, a line each. */
async function hunt(chosen: Mutant[], subjects: Subjects, each: boolean): Promise<string[]> {
  setPatience(PATIENCE);
  const known = await asItIs(subjects);
  const problems: string[] = [];
  const results = new Map<Mutant, Result>(
    chosen.map((mutant) => [mutant, { mutant, found: [], ms: 0, left: checks.length }]),
  );
  for (const { name, foundBy } of chosen)
    if (foundBy.length === 0) problems.push(`WRONG    ${name}: names no check`);
  const settle = (mutant: Mutant) => {
    const result = results.get(mutant)!;
    if (--result.left === 0) console.log(line(result));
  };

  let runs = 0;
  let pairs = 0;
  async function* toBeFound(some: Check[]): AsyncGenerator<Together> {
    for (const check of some)
      for (const mutant of chosen.filter(({ foundBy }) => foundBy.includes(check.id)))
        yield { check, group: [mutant] };
  }
  async function* notToBeFound(some: Check[]): AsyncGenerator<Together> {
    for (const check of some) {
      const [others, named] = partition(chosen, ({ foundBy }) => !foundBy.includes(check.id));
      const { lives } = known.get(check)!;
      const groups = each ? callsBroken(others, lives) : await groupsChanging(others, lives);
      const touched = groups.flat();
      new Set(others).difference(new Set(touched)).forEach(settle);
      pairs += named.length + touched.length;
      for (const group of groups) yield { check, group };
    }
  }
  const judge = async ({ check, group }: Together, subject: Subject): Promise<void> => {
    const [mutant, ...others] = group;
    if (!mutant) return;
    const attempt = () => runThrough(check, subject, () => composed(group));
    runs++;
    if (others.length > 0) {
      // Together they are as good as a driver that is right: so is each of them.
      const outcome = await attempt();
      if (!isFinding(outcome) && outcome.verdict === known.get(check)!.verdict) return group.forEach(settle);
      const half = Math.ceil(group.length / 2);
      await judge({ check, group: group.slice(0, half) }, subject);
      return judge({ check, group: group.slice(half) }, subject);
    }
    const result = results.get(mutant)!;
    const expected = mutant.foundBy.includes(check.id);
    let outcome = await attempt();
    if (wrong(outcome, expected)) outcome = await inPeace(attempt);
    result.ms += outcome.ms;
    if (isFinding(outcome)) result.found.push(check.id);
    if (wrong(outcome, expected)) problems.push(describe(mutant, outcome, expected));
    settle(mutant);
  };
  // Who must find something often waits for what does not come, and who must not never does.
  const queues = [
    { items: toBeFound, atATime: 4 },
    { items: notToBeFound, atATime: 5 },
  ];
  await everywhere(subjects, queues, judge);
  console.log(`\n${chosen.length} mutants, ${pairs} checks that each may change, in ${runs} runs`);
  return problems;
}

/** Each mutant that intercepts a call of the check, alone. */
function callsBroken(all: Mutant[], lives: Lives): Mutant[][] {
  const methods = new Set(lives.flat().map(({ name }) => name));
  const intercepts = ({ make }: Mutant) => !methods.isDisjointFrom(new Set(Object.keys(make())));
  return all.filter(intercepts).map((mutant) => [mutant]);
}

/** The mutants that would have changed something in the check's calls, together as far as they change different things. */
async function groupsChanging(all: Mutant[], lives: Lives): Promise<Mutant[][]> {
  const changing = new Map<Mutant, Footprint>();
  for (const mutant of all) {
    const places = await footprint(mutant, lives);
    if (places.size > 0) changing.set(mutant, places);
  }
  return sideBySide(changing);
}

/** A check, and the mutants that it is asked about in one run. */
interface Together {
  check: Check;
  group: Mutant[];
}

function partition<T>(items: T[], belongs: (item: T) => boolean): [T[], T[]] {
  return [items.filter(belongs), items.filter((item) => !belongs(item))];
}

/** What a check finds, and what it asks of each driver, on the driver as it is. */
interface Known {
  verdict: Outcome["verdict"];
  lives: Lives;
}

async function asItIs(subjects: Subjects): Promise<Map<Check, Known>> {
  const known = new Map<Check, Known>();
  async function* items(some: Check[]) {
    yield* some;
  }
  await everywhere(subjects, [{ items, atATime: 8 }], async (check, subject) => {
    let lives: Lives = [];
    const attempt = () =>
      runThrough(
        check,
        subject,
        () => ({}),
        (crossed) => (lives = crossed),
      );
    const bad = ({ verdict }: Outcome) => verdict === "fail" || verdict === "error";
    let outcome = await attempt();
    if (bad(outcome)) outcome = await inPeace(attempt);
    if (bad(outcome)) throw new HarnessError(`${check.id} fails on the driver as it is: ${outcome.reason}`);
    known.set(check, { verdict: outcome.verdict, lives });
  });
  return known;
}

let taps = 0;

/** Runs a check through taps of its own: one before the driver, and one before each driver that the check starts. */
async function runThrough(
  check: Check,
  subject: Subject,
  broken: () => Interceptors,
  onCalls?: (lives: Lives) => void,
): Promise<Outcome> {
  const opened: Tap[] = [];
  const inFront = async (driver: string): Promise<string> => {
    const socket = join(subject.owned!.stack.folder, "tap", `${++taps}.sock`);
    const tap = await Tap.open(socket, driver, () => {}, Promise.resolve());
    // Made anew: what a driver keeps in its memory is gone when it is started again.
    tap.intercept = broken();
    opened.push(tap);
    return socket;
  };
  try {
    return await runOne(check, { ...subject, socket: await inFront(subject.own.socket), inFront });
  } finally {
    onCalls?.(opened.map((tap) => tap.crossed()));
    for (const tap of opened) tap.close();
  }
}

/** One at a time, and with all the patience that a check has. */
let peace: Promise<unknown> = Promise.resolve();
function inPeace<T>(work: () => Promise<T>): Promise<T> {
  const turn = peace.then(async () => {
    setPatience(1);
    try {
      return await within(120_000, "A mutant's check", work());
    } finally {
      setPatience(PATIENCE);
    }
  });
  peace = turn.catch(() => {});
  return turn;
}

/** A driver for the checks that may share one, and one for those that each must have one to themselves. */
interface Subjects {
  shared: Subject;
  alone: Subject;
}

/** What there is to do, and how many of it at a time, as long as there is enough. */
interface Queue<T> {
  items: (some: Check[]) => AsyncGenerator<T>;
  atATime: number;
}

/** Does the work that the checks make: side by side on the shared driver, one after the other on the other. */
async function everywhere<T>(
  { shared, alone }: Subjects,
  queues: Queue<T>[],
  work: (item: T, subject: Subject) => Promise<void>,
): Promise<void> {
  const [lone, together] = partition(checks, (check) => check.alone);
  const shares = queues.map(({ items }) => items(together));
  // Sandboxes of other checks come and go: with one that stays no list is empty, or is not, by chance.
  const standing = new Trial(shared);
  await standing.running();
  const workers = queues.flatMap(({ atATime }, own) =>
    Array.from({ length: atATime }, () => inTurn([shares[own]!, ...shares], (item) => work(item, shared))),
  );
  const loner = inTurn(
    queues.map(({ items }) => items(lone)),
    (item) => work(item, alone),
  );
  await Promise.all([...workers, loner]);
  await standing.end();
}

/** Takes from one queue after the other; others may take from them, too. */
async function inTurn<T>(queues: AsyncGenerator<T>[], work: (item: T) => Promise<void>): Promise<void> {
  for (const queue of queues) for await (const item of queue) await work(item);
}

const isFinding = ({ verdict, left }: Outcome): boolean => verdict === "fail" || left.length > 0;
const wrong = (outcome: Outcome, expected: boolean): boolean =>
  outcome.verdict === "error" || isFinding(outcome) !== expected;

function describe({ name }: Mutant, { check, verdict, reason, left }: Outcome, expected: boolean): string {
  if (verdict === "error") return `ERROR    ${name}: ${check.id}: ${reason}`;
  if (expected) return `SURVIVED ${name}: ${check.id} did not find it (${verdict}${reason && `: ${reason}`})`;
  return `WRONG    ${name}: ${check.id} found it, and is not named: ${[reason, ...left].filter(Boolean).join("; ")}`;
}

const line = ({ mutant, found, ms }: Result): string =>
  `${mutant.foundBy.every((id) => found.includes(id)) ? "killed  " : "SURVIVED"} ${mutant.name} [${found.toSorted().join(" ")}] ${ms.toFixed(0)} ms`;

/** The MUSTs that no mutant names: nobody knows whether they could fail. */
function unproven(all: Mutant[]): string[] {
  const named = new Set(all.flatMap(({ foundBy }) => foundBy));
  return checks
    .filter(({ id, level }) => level === "MUST" && !named.has(id))
    .map(({ id, rule }) => `UNPROVEN ${id} ${rule}: no mutant names it`);
}
