// SPDX-License-Identifier: Apache-2.0

/**
 * `check --driver 'CMD' | --socket PATH`: does a driver keep the compute-driver contract? On its socket alone: the
 * harness plays the gateway. Without either, the driver that the settings name is checked, or the fake.
 */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Command } from "../command-line.ts";
import { EXIT, HarnessError } from "../base/errors.ts";
import { interruptible, unless } from "../base/waiting.ts";
import { refuseFaked, type Settings } from "../base/settings.ts";
import { shownPath, shellQuoted } from "../base/text.ts";
import { standings } from "../shared-run.ts";
import { withKeeper } from "../runtime/connection.ts";
import { driverProblem, fromHere, programProblem, words } from "../base/command.ts";
import { bringsEngine, describeParts } from "../runtime/places.ts";
import { newRunId } from "../runtime/run.ts";
import { clearReports, CONFORMANCE, openReports, RESULTS, writeReports } from "../runtime/reports.ts";
import type { Check } from "../conformance/check.ts";
import { judge, type Judged, recordBegun, recordOutcome } from "../conformance/judge.ts";
import { type Known, readKnown } from "../report/known-failing.ts";
import { loadChecks } from "../conformance/load.ts";
import { countsTable, explanation, markdown, notRunLines, oneLine, summary } from "../conformance/report.ts";
import { notRun, run } from "../conformance/runner.ts";
import { type BackendChoice, NotReady, runningSubject, startSubject } from "../conformance/subject.ts";
import type { Subject } from "../conformance/trial.ts";
import { identify } from "../conformance/versions.ts";
import { loadGrpc } from "../../proto/contract.ts";
import type { Standing } from "../report/model.ts";
import { liveProgress } from "../report/progress.ts";
import { readable, say } from "../base/readable.ts";
import { now, record, recordTo, waitingEntries } from "../report/record.ts";

/**
 * Most of a check is waiting; but a real Podman that does several things at a time now and then loses a mounted image, and
 * what one check asks at once must fail no other where the driver takes so many calls, or sandboxes, and no more.
 */
const AT_A_TIME = { atHome: 5, elsewhere: 1 };

/** What says which driver is asked, and how one looks behind it. */
const SUBJECT_FLAGS = [
  "driver",
  "socket",
  "backend",
  "backend-list",
  "backend-kill",
  "backend-remove",
] as const;

export const command: Command = (settings, _args, own) => interruptible((stop) => check(settings, own, stop));

async function check(settings: Settings, own: Record<string, string>, stop: AbortSignal): Promise<number> {
  const { driver, socket, only, list } = own;
  if (driver && socket)
    throw new HarnessError("check: --driver starts a driver, --socket names one that runs: give one");
  if (driver) refuseFaked("--driver", "driver", settings);
  const wrong = driver && (driverProblem(driver) || programProblem(words(driver)[0]!));
  if (wrong) throw new HarnessError(`--driver: ${wrong}: ${driver}`);
  // A choice may be wrong, which is said before anything is started.
  const chosen = only || list || socket ? await chooseRules(only) : undefined;
  if (list) {
    for (const { id, level, group, rule } of chosen?.checks ?? [])
      say(`${id.padEnd(6)} ${level.padEnd(6)} ${group}: ${rule}`);
    return EXIT.ok;
  }
  const choice = own as BackendChoice;
  const said = SUBJECT_FLAGS.flatMap((flag) => (own[flag] === undefined ? [] : [`--${flag}`, own[flag]]));
  const flags = said.map(shellQuoted).join(" ");
  const reports = openReports(settings);
  // An earlier run's say nothing of a driver that does not come up.
  clearReports(reports);
  if (socket) {
    recordBegin(newRunId(), {});
    const subject = await runningSubject(socket, settings, choice);
    let conformance: string | undefined;
    const onConformance = (table: string) => (conformance = table);
    const code = await checkAll(chosen!, subject, settings, { flags, stop, onConformance });
    const { problem } = writeReports({ entries: waitingEntries(), reports, conformance });
    if (problem) console.error(`openshell-e2e: ${problem}`);
    return problem ? EXIT.error : code;
  }

  const started = driver ? { ...settings, driverCmd: fromHere(driver) } : settings;
  const checking = withKeeper(
    started,
    async (keeper, run) => {
      const { id, folder } = run;
      const { parts } = await keeper.call("hello");
      recordTo(folder, "check");
      const label = bringsEngine(started) ? "the driver's own" : "probe";
      const probed = { ...parts, supervisor: { ...parts.supervisor, label } };
      // No gateway takes part.
      const { gateway: _gateway, ...stack } = standings(probed);
      recordBegin(id, stack);
      say(describeParts(probed, ["driver", "engine", "supervisor"]));
      const starting = unless(stop, startSubject(keeper, started, choice)).catch((error: unknown) => {
        if (error instanceof NotReady) return error;
        throw error;
      });
      // All of them are loaded while the driver starts.
      const [subject, rules] = await Promise.all([starting, chosen ?? chooseRules()]);
      if (subject instanceof NotReady) return reportNotReady(rules.checks, subject);
      const isAtHome = !parts.engine.real && !started.driverCmd;
      const parallel = Number(started.parallel) || (isAtHome ? AT_A_TIME.atHome : AT_A_TIME.elsewhere);
      // The keeper puts it beside the results, or says that somebody has removed the folder.
      const onConformance = (table: string) => {
        if (run.isThere) writeFileSync(join(folder, CONFORMANCE), table);
      };
      return checkAll(rules, subject, started, { parallel, flags, stop, onConformance });
    },
    stop,
  );
  // While its programs start.
  loadGrpc();
  const { result, left, problem } = await checking;
  for (const line of left) say(`left behind, removed: ${line}`);
  if (problem) return EXIT.error;
  return result === EXIT.ok && left.length > 0 ? EXIT.leftovers : result;
}

/** How the checks are asked. */
interface Asking {
  parallel?: number;
  /** What was said of the driver, for whoever asks again. */
  flags: string;
  stop: AbortSignal;
  /** Gets the table of the rules, once all of them were asked. */
  onConformance: (table: string) => void;
}

async function checkAll(
  { checks, all, known }: Rules,
  subject: Subject,
  settings: Settings,
  { parallel = AT_A_TIME.elsewhere, flags, stop, onConformance }: Asking,
): Promise<number> {
  const identity = await identify(subject.socket).catch((error: Error) => {
    throw new HarnessError(
      `The driver on ${subject.socket} does not answer GetCapabilities: ${error.message}`,
    );
  });
  const { name, version, contract, serves } = identity;
  say(`driver ${name} ${version} · contract ${contract}, serves ${serves}\n`);
  const judged: Judged[] = [];
  const progress = liveProgress();
  const sharing: Subject = { ...subject, spare: [] };
  await run(checks, sharing, {
    parallel,
    stop,
    older: identity.missing,
    onBegin(check) {
      recordBegun(check);
      progress?.note({ begun: check.id });
    },
    onOutcome(outcome) {
      const one = judge(outcome, known, identity);
      judged.push(one);
      recordOutcome(one);
      // They are told together, at the end.
      if (one.notRun) return void progress?.note({ ended: one.check.id, verdict: one.verdict });
      const line = oneLine(one);
      if (progress) progress.print(`${readable(line)}\n`);
      else say(line);
      progress?.note({ ended: one.check.id, verdict: one.verdict });
    },
  });
  progress?.end();
  const ordered = checks.flatMap((check) => judged.find((one) => one.check === check) ?? []);
  for (const one of ordered.filter(({ verdict, notRun }) => !notRun && ["fail", "error"].includes(verdict)))
    say(`\n${explanation(one, flags)}`);
  const never = notRunLines(ordered);
  say(`\n${[...never, ...(never.length > 0 ? [""] : []), countsTable(ordered)].join("\n")}\n`);
  // What was asked by then is no conformance; without an end on record, the results say so themselves.
  if (stop.aborted) {
    say(`${(stop.reason as Error).message}: ${ordered.length} of ${checks.length} rules were asked`);
    say(`Results: ${shownPath(join(settings.reports, RESULTS))}`);
    say(summary(ordered));
    return EXIT.error;
  }
  onConformance(markdown(ordered, all, identity, new Date()));
  say(`For the driver's README: ${shownPath(join(settings.reports, CONFORMANCE))}`);
  say(summary(ordered));
  record({ kind: "end", at: now() });
  const is = (verdict: string) => ordered.some((one) => one.verdict === verdict);
  return is("error") ? EXIT.error : is("fail") ? EXIT.failed : EXIT.ok;
}

const recordBegin = (run: string, stack: Record<string, Standing>): void =>
  record({
    kind: "begin",
    at: now(),
    run,
    command: ["bun", "harness.ts", ...process.argv.slice(2)].map(shellQuoted).join(" "),
    stack,
  });

/** Says of every check that nobody could ask it, and why. */
function reportNotReady(checks: Check[], { message }: NotReady): number {
  const judged = checks.map((check) => notRun(check, "the driver did not come up"));
  for (const one of judged) recordOutcome(one);
  record({ kind: "end", at: now() });
  const never = notRunLines(judged).join("\n");
  say(`\nThe driver did not come up.\n${message}\n\n${never}\n\n${summary(judged)}`);
  return EXIT.error;
}

/** The rules that are asked. */
interface Rules {
  checks: Check[];
  /** How many there are, asked or not. */
  all: number;
  known: Known[];
}

async function chooseRules(only?: string): Promise<Rules> {
  const all = await loadChecks();
  const checks = choose(all, only);
  return { checks, all: all.length, known: readKnown("check", new Set(all.map(({ id }) => id))) };
}

/**
 * The checks that `--only` names: ids, ranges (`DC-70..79`) and groups (`E`), on lines or comma separated; all without it.
 * A number alone, of an id or of a range, is one with `DC-` before it.
 */
function choose(checks: Check[], only: string | undefined): Check[] {
  if (!only) return checks;
  const chosen = new Set<Check>();
  for (const word of only.split(/[,\n]/).map((part) => part.trim())) {
    const matching = checks.filter((check) => matches(check, word));
    if (matching.length === 0)
      throw new HarnessError(`--only ${word}: there is no such check. --list shows them`);
    for (const check of matching) chosen.add(check);
  }
  return checks.filter((check) => chosen.has(check));
}

function matches({ id, group }: Check, said: string): boolean {
  const word = /^\d/.test(said) ? `DC-${said}` : said;
  const [, prefix = "", first, last] = /^(\w+-)(\d+)\.\.(?:\w+-)?(\d+)$/.exec(word) ?? [];
  if (first && last) {
    const number = Number(id.slice(prefix.length));
    return id.startsWith(prefix) && number >= Number(first) && number <= Number(last);
  }
  return id === word || group.split(" ")[0] === word;
}
