// SPDX-License-Identifier: Apache-2.0

/**
 * `test [SUITE...] [-t PATTERN] [-- bun test's own arguments]`: the entry command of people, mise and CI.
 *
 * Runs the scenarios of the named suites, or without a name every test there is, live, and ends with one line
 * `<what>: N passed, N failed, N skipped`. A run that executed nothing is an error (exit code 2).
 */
import { ROOT } from "../base/root.ts";
import { Glob } from "bun";
import { closeSync, fstatSync, mkdtempSync, openSync, readdirSync, readSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, dirname, join } from "node:path";
import { asEnvironment, type Settings } from "../base/settings.ts";
import type { Command } from "../command-line.ts";
import { EXIT, HarnessError } from "../base/errors.ts";
import { GATEWAYS_AT_A_TIME } from "../scenario.ts";
import { scenariosAtATime } from "../shared-run.ts";
import { shownPath, inColour, shellQuoted } from "../base/text.ts";
import { within } from "../base/waiting.ts";
import { BUN } from "../base/environment.ts";
import { clearedAway } from "../runtime/aftermath.ts";
import { checkParts, describeParts, findParts } from "../runtime/places.ts";
import { endingWithUs } from "../base/parent.ts";
import { clearReports, openReports, replaceJunit, RESULTS } from "../runtime/reports.ts";
import { ENDING, outlivingToo } from "../base/signals.ts";
import { isRed, type Verdict } from "../report/model.ts";
import { liveProgress, type Told } from "../report/progress.ts";

/** The scenarios of the suites whose folders OPENSHELL_E2E_SUITES names, as one test file. */
export const TOGETHER = "./scenarios/together.ts";

const SCENARIOS = join(ROOT, "scenarios");

/** The suites' folders by their names. A folder within another one's is a suite of its own. */
const SUITES = new Map(
  [...new Glob("**/*.test.ts").scanSync(SCENARIOS)]
    .map((file) => dirname(file))
    .toSorted()
    .map((folder) => [basename(folder), folder]),
);

/** The suite that an argument names: by itself, or by its folder as a shell completes it. */
function suiteOf(arg: string): string | undefined {
  if (SUITES.has(arg)) return arg;
  const folder = arg.replace(/^(\.\/)?scenarios\//, "").replace(/\/$/, "");
  return [...SUITES].find(([, path]) => path === folder)?.[0];
}

export const command: Command = async (settings, args, { t: pattern }) => {
  const suites = args.flatMap((arg) => suiteOf(arg) ?? []);
  const bunArgs = args.filter((arg) => suiteOf(arg) === undefined);
  const [first] = bunArgs;
  if (first && !first.startsWith("-"))
    throw new HarnessError(
      `test: there is no suite ${first}; there are ${[...SUITES.keys()].toSorted().join(", ")}`,
    );
  const reporter = bunArgs.find((arg) => /^--reporter(-outfile)?(=|$)/.test(arg));
  if (reporter)
    throw new HarnessError(
      `test: ${reporter}: bun's report is the harness's own, which makes junit.xml of it; --dots prints less`,
    );
  if (pattern !== undefined && !isRegExp(pattern))
    throw new HarnessError(`-t: a regular expression was expected: ${pattern}`);

  const parts = await checkParts(findParts(settings), settings);
  console.log(describeParts(parts));
  const reports = openReports(settings);
  clearReports(reports);
  const bunReport = namelessFile();
  // On a terminal the last line is ours, so what bun prints goes through us.
  const progress = liveProgress();
  const output = progress ? "pipe" : "inherit";
  const heard: Heard = { verdicts: [] };
  const hung = Promise.withResolvers<void>();
  const child = Bun.spawn(
    outlivingToo([
      ...[...BUN, "test", "--reporter=junit", "--reporter-outfile=/dev/fd/3"],
      `--max-concurrency=${atATime(suites, settings)}`,
      ...(pattern === undefined ? [] : ["-t", pattern]),
      ...bunArgs,
      ...testFiles(suites, bunArgs),
    ]),
    {
      cwd: ROOT,
      env: {
        ...environment(settings, suites),
        ...endingWithUs(),
        OPENSHELL_E2E_PATTERN: pattern,
        ...(progress && inColour(process.stderr) && { FORCE_COLOR: "1" }),
        ...(progress && { OPENSHELL_E2E_COLUMNS: String(process.stderr.columns) }),
      },
      stdio: ["ignore", output, output, bunReport],
      ipc(told: Told) {
        if ("run" in told) heard.run = told.run;
        else progress?.note(told);
        if ("ended" in told) heard.verdicts.push(told.verdict);
      },
      onDisconnect: () => hung.resolve(),
    },
  );
  const printed = [child.stdout, child.stderr].map(async (stream) => {
    for await (const text of stream?.pipeThrough(new TextDecoderStream()) ?? []) progress?.print(text);
  });
  const forward = (signal: NodeJS.Signals) => child.kill(signal);
  for (const signal of ENDING) process.on(signal, forward);
  const code = await child.exited;
  // A process that outlives it may hold its output open; that is no reason to wait.
  const rest = Promise.all([...printed, hung.promise]);
  await within(2_000, "the rest of the output", rest).catch(() => {});
  progress?.end();
  // From here on a signal ends the wait.
  for (const signal of ENDING) process.off(signal, forward);
  await clearedAway(child.pid, settings);

  const itsReport = takeText(bunReport);
  const counts = countsOf(itsReport);
  const problem = counts && hasMore(suites, counts, heard) && noteReport(reports, heard.run, itsReport);
  if (problem && code !== EXIT.error) console.error(`openshell-e2e: ${problem}`);
  const what = suites.join(" ") || "all";
  if (!counts && code === EXIT.error) return code;
  if (!counts || counts.passed + counts.failed === 0) {
    const why = () => {
      if (child.signalCode)
        return `bun test was ended by ${child.signalCode}; what it had found by then is in ${shownPath(join(reports, RESULTS))}`;
      if (!counts) return `bun test ended with ${code} and ran no test`;
      if (heard.verdicts.includes("skip")) return "all that was chosen is skipped, for the reasons above";
      if (pattern === undefined) return `bun test ended with ${code} and ran no test`;
      return `no ${suites.length > 0 ? "scenario" : "test"}'s title matches ${pattern}`;
    };
    console.error(`openshell-e2e: ${why()}`);
    return child.signalCode ? code : EXIT.error;
  }
  if (code === EXIT.leftovers) console.log("Something was left behind; it is named above");
  const { passed, failed, skipped } = counts;
  console.log(
    `${what}: ${passed} passed, ${failed} failed, ${skippedWords(skipped, suites, heard, pattern)}`,
  );
  if (problem && code !== EXIT.leftovers) return EXIT.error;
  return counts.failed > 0 && code === EXIT.ok ? EXIT.failed : code;
};

/**
 * A file for bun's own report. It has no name, so that nothing of it stays, whoever is killed. Returns its descriptor.
 * @throws HarnessError when there can be none.
 */
function namelessFile(): number {
  try {
    const folder = mkdtempSync(join(tmpdir(), "openshell-e2e-"));
    const file = openSync(join(folder, "junit.xml"), "wx+", 0o600);
    rmSync(folder, { recursive: true });
    return file;
  } catch (error) {
    throw new HarnessError(`a temporary file cannot be made: ${(error as Error).message}`);
  }
}

/** What is in an open file, which is closed. */
function takeText(file: number): string {
  const bytes = Buffer.alloc(fstatSync(file).size);
  readSync(file, bytes, 0, bytes.length, 0);
  closeSync(file);
  return bytes.toString();
}

/** What our own test process told us. What lies in the folder of reports may be another run's. */
interface Heard {
  run?: string;
  /** Of the scenarios that ended. */
  verdicts: Verdict[];
}

function isRegExp(pattern: string): boolean {
  try {
    return Boolean(new RegExp(pattern));
  } catch {
    return false;
  }
}

/** As many as there are turns, so that the time that bun shows is a scenario's own, without its wait for one. */
const atATime = (suites: string[], settings: Settings): number =>
  suites.join() === "gateway-adapter" ? GATEWAYS_AT_A_TIME : scenariosAtATime(settings);

/**
 * What bun is to run: the suites' files as one, and without a suite those of all suites, and every other test. With
 * arguments of its own bun gets the files one by one: --rerun-each, for one, loads each file again, and not what it loads.
 */
function testFiles(suites: string[], bunArgs: string[]): string[] {
  if (bunArgs.length > 0) {
    const patterns = suites.map((suite) => `scenarios/${SUITES.get(suite)}/*.test.ts`);
    return patterns.flatMap((pattern) => [...new Glob(pattern).scanSync(ROOT)].toSorted());
  }
  if (suites.length > 0) return [TOGETHER];
  return [TOGETHER, ...otherTests().map((path) => `./${path}`)];
}

/** The test files beside the scenarios, wherever they lie in the checkout. */
export function otherTests(): string[] {
  const isOurs = (name: string) => !name.startsWith(".") && !["node_modules", "scenarios"].includes(name);
  const folders = readdirSync(ROOT, { withFileTypes: true }).filter(
    (entry) => entry.isDirectory() && isOurs(entry.name),
  );
  const patterns = ["*.test.ts", ...folders.map(({ name }) => `${name}/**/*.test.ts`)];
  return patterns.flatMap((pattern) => [...new Glob(pattern).scanSync(ROOT)]).toSorted();
}

/** The settings as the test process reads them, and none of the variables that make bun test print less. */
function environment(settings: Settings, suites: string[]): Record<string, string | undefined> {
  const quiet = Object.fromEntries(["CLAUDECODE", "REPL_ID", "AGENT"].map((name) => [name, undefined]));
  return {
    ...process.env,
    ...quiet,
    ...asEnvironment(settings),
    // A run that counts is complete in itself: a kept stack may have faults.
    OPENSHELL_E2E_ATTACH: "0",
    OPENSHELL_E2E_ANNOUNCED: "1",
    OPENSHELL_E2E_SUITES: suites.map((suite) => SUITES.get(suite)).join(","),
    OPENSHELL_E2E_COMMAND: ["bun", "harness.ts", ...process.argv.slice(2)].map(shellQuoted).join(" "),
  };
}

/** For bun what `-t` leaves out is skipped like the rest; of other tests than scenarios nobody knows which it was. */
function skippedWords(skipped: number, suites: string[], { verdicts }: Heard, pattern?: string): string {
  if (pattern === undefined) return `${skipped} skipped`;
  if (suites.length === 0) return `${skipped} skipped or not selected`;
  // What skips itself is recorded. Bun counts each file's run apart with --rerun-each, and may select by more than `-t`.
  const byItself = Math.min(skipped, verdicts.filter((verdict) => verdict === "skip").length);
  return `${byItself} skipped${skipped > byItself ? ` (${skipped - byItself} not selected)` : ""}`;
}

interface Counts {
  passed: number;
  failed: number;
  skipped: number;
}

/** bun's own totals, from the first line of its JUnit report. */
function countsOf(bunReport: string): Counts | undefined {
  const line = /<testsuites [^>]*>/.exec(bunReport)?.[0];
  if (!line) return undefined;
  const count = (name: string) => Number(new RegExp(`${name}="(\\d+)"`).exec(line)?.[1] ?? 0);
  const [tests, failed, skipped] = [count("tests"), count("failures"), count("skipped")];
  return { passed: tests - failed - skipped, failed, skipped };
}

/**
 * Whether bun's own report has what ours, which tells more of each scenario, has not: tests besides the scenarios, or a
 * failure of one.
 */
const hasMore = (suites: string[], { failed }: Counts, { verdicts }: Heard): boolean =>
  suites.length === 0 || verdicts.length === 0 || (failed > 0 && !verdicts.some(isRed));

/** Keeps bun's own report as the JUnit report of our run. Returns why it could not. */
function noteReport(reports: string, run: string | undefined, text: string): string | undefined {
  try {
    replaceJunit(reports, run, text);
    return undefined;
  } catch (error) {
    return `the JUnit report is not written: ${(error as Error).message}`;
  }
}
