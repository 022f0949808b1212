// SPDX-License-Identifier: Apache-2.0

/**
 * `mutants [--only PATTERN]`: proves that the checks of the driver contract bite.
 *
 * Each mutant, a driver broken on purpose, is checked by every check that makes a call which the mutant breaks. It must
 * be found by those that it names, and by no other; and every MUST must find at least one mutant.
 */
import { join } from "node:path";
import { type Command, EXIT, HarnessError, within, withKeeper } from "../harness.ts";
import { describeParts } from "../keeper/places.ts";
import { type Check, checks, setPatience } from "../contract/check.ts";
import { loadChecks } from "../contract/load.ts";
import { type Mutant, mutants } from "../contract/mutant.ts";
import { changesAny } from "../contract/replay.ts";
import { type Outcome, runOne } from "../contract/runner.ts";
import { startSubject } from "../contract/subject.ts";
import type { Subject } from "../contract/trial.ts";
import { type Crossed, type Interceptors, Tap } from "../keeper/tap.ts";

/** Mutants that answer nothing must not cost a check its whole deadline; what looks odd is looked at again with all of it. */
const PATIENCE = 0.1;
const AT_A_TIME = 8;

/** What came of a mutant. */
interface Result {
  mutant: Mutant;
  found: string[];
  /** How many checks have not been run yet. */
  left: number;
  ms: number;
}

export const command: Command = async (settings, args, { only }) => {
  if (args.length > 0) throw new HarnessError(`mutants: unexpected ${args[0]}`);
  await loadChecks();
  for (const file of [...new Bun.Glob("*.ts").scanSync(MUTANTS)].toSorted())
    await import(join(MUTANTS, file));
  const chosen = mutants.filter(
    ({ name, foundBy }) => !only || new RegExp(only).test([name, ...foundBy].join(" ")),
  );
  if (chosen.length === 0)
    throw new HarnessError(`--only ${only}: no mutant has that in its name or its checks`);
  const began = performance.now();
  const { result, left } = await withKeeper(settings, async (keeper) => {
    console.log(describeParts((await keeper.call("hello")).parts));
    return hunt(chosen, await startSubject(keeper, settings));
  });
  for (const line of left) console.log(`left behind, removed: ${line}`);
  const problems = [...result, ...(only ? [] : unproven(chosen))];
  for (const problem of problems) console.log(problem);
  const seconds = ((performance.now() - began) / 1_000).toFixed(1);
  console.log(`mutants: ${chosen.length} mutants, ${problems.length} problems, ${seconds} s`);
  if (problems.length > 0) return EXIT.failed;
  return left.length > 0 ? EXIT.leftovers : EXIT.ok;
};

const MUTANTS = join(import.meta.dir, "..", "contract", "mutants");

/** Checks all mutants. Resolves with what is wrong, a line each. */
async function hunt(chosen: Mutant[], subject: Subject): Promise<string[]> {
  setPatience(PATIENCE);
  const calls = await callsOf(checks, subject);
  const problems: string[] = [];
  const results = new Map(
    chosen.map((mutant) => [mutant, { mutant, found: [] as string[], ms: 0, left: 0 }]),
  );
  const pairs: { mutant: Mutant; check: Check }[] = [];
  for (const mutant of chosen) {
    const touched: Check[] = [];
    for (const check of checks) {
      // A driver that a check starts has a memory, and so a mutant, of its own.
      const lives = calls.get(check) ?? [];
      const changed = await Promise.all(lives.map((life) => changesAny(mutant.make(), life)));
      // What happens only when calls overlap is not seen one by one: those that it names are run anyhow.
      if (changed.includes(true) || mutant.foundBy.includes(check.id)) touched.push(check);
    }
    if (mutant.foundBy.length === 0) problems.push(`WRONG    ${mutant.name}: names no check`);
    pairs.push(...touched.map((check) => ({ mutant, check })));
    results.get(mutant)!.left = touched.length;
  }
  console.log(`${chosen.length} mutants, ${pairs.length} checks that each changes something for\n`);

  const judge = async ({ mutant, check }: { mutant: Mutant; check: Check }) => {
    const result = results.get(mutant)!;
    const expected = mutant.foundBy.includes(check.id);
    let outcome = await runThrough(check, subject, mutant.make);
    if (wrong(outcome, expected)) outcome = await inPeace(() => runThrough(check, subject, mutant.make));
    result.ms += outcome.ms;
    if (isFinding(outcome)) result.found.push(check.id);
    if (wrong(outcome, expected)) problems.push(describe(mutant, outcome, expected));
    if (--result.left === 0) console.log(line(result));
  };
  await pool(
    pairs.filter(({ check }) => !check.alone),
    AT_A_TIME,
    judge,
  );
  await pool(
    pairs.filter(({ check }) => check.alone),
    1,
    judge,
  );
  return problems;
}

/** What each check asks of each driver, found out by running them all against the driver as it is. */
async function callsOf(all: Check[], subject: Subject): Promise<Map<Check, Crossed[][]>> {
  const calls = new Map<Check, Crossed[][]>();
  const learn = async (check: Check) => {
    const attempt = () =>
      runThrough(
        check,
        subject,
        () => ({}),
        (lives) => calls.set(check, lives),
      );
    const bad = ({ verdict }: Outcome) => verdict === "fail" || verdict === "error";
    let outcome = await attempt();
    if (bad(outcome)) outcome = await inPeace(attempt);
    if (bad(outcome)) throw new HarnessError(`${check.id} fails on the driver as it is: ${outcome.reason}`);
  };
  await pool(
    all.filter(({ alone }) => !alone),
    AT_A_TIME,
    learn,
  );
  await pool(
    all.filter(({ alone }) => alone),
    1,
    learn,
  );
  return calls;
}

let taps = 0;

/** Runs a check through taps of its own: one before the driver, and one before each driver that the check starts. */
async function runThrough(
  check: Check,
  subject: Subject,
  broken: () => Interceptors,
  onCalls?: (lives: Crossed[][]) => void,
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
    return await runOne(check, { ...subject, socket: await inFront(subject.directSocket), inFront });
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

async function pool<T>(items: T[], size: number, work: (item: T) => Promise<void>): Promise<void> {
  const next = items.values();
  const worker = async () => {
    for (const item of next) await work(item);
  };
  await Promise.all(Array.from({ length: size }, worker));
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
