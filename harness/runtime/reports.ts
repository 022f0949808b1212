// SPDX-License-Identifier: Apache-2.0

/**
 * The folder in which a run leaves its results, its logs and what is made of them. The files have fixed names, because
 * people and CI look for them there, and they belong together: they are always those of one run. Runs may share a
 * folder. Each of them knows its own results without reading them there; the folder has those of the run that ended last.
 */
import { Database } from "bun:sqlite";
import {
  accessSync,
  closeSync,
  constants,
  existsSync,
  fstatSync,
  lstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  renameSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { HarnessError } from "../base/errors.ts";
import type { Settings } from "../base/settings.ts";
import { readLog } from "../base/log.ts";
import { readableWhole } from "../base/readable.ts";
import { shareSecrets } from "../base/secrets.ts";
import { junit } from "../report/formats/junit.ts";
import { isRed, type Results } from "../report/model.ts";
import { assemble, type Entry } from "../report/record.ts";
import { redactResults } from "../report/redact.ts";
import type { RunFolder } from "./marks.ts";

/** A table of the rules, for the driver's README: of `check` alone. */
export const CONFORMANCE = "contract.md";
export const JUNIT = "junit.xml";
export const RESULTS = "results.json";
const LOGS = "logs";

/** The files of a run, and what each begins with when a run or a report of one wrote it: nothing else is ever replaced. */
const FILES: Record<string, RegExp> = {
  [RESULTS]: /^\s*\{\s*"schema"\s*:/,
  [JUNIT]: /^(?:<\?xml [^>]*\?>\s*)?<testsuites name="(?:openshell-e2e|bun test)/,
  [CONFORMANCE]: /^## Contract conformance of /,
};
const NAMES = [...Object.keys(FILES), LOGS];
/** Enough of a file to tell what it is, in bytes. */
const HEAD = 256;

/** In a folder of logs that a run wrote, with that run's id. */
const LOGS_MARK = ".openshell-e2e";
/** Locked by whoever replaces the files. It is empty. */
const LOCK = ".openshell-e2e.lock";
/** Where files are written before they take their places. */
const FRESH = ".openshell-e2e.new";
/** How long another run may take to write its files, in milliseconds. */
const LOCK_DEADLINE_MS = 30_000;

/**
 * Makes the folder of reports, before anything is started. Returns its path.
 * @throws HarnessError when nothing can be written there, or when a run would replace what no run wrote.
 */
export function openReports({ reports }: Settings): string {
  try {
    const problem = makeFolder(reports) ?? foreignFile(reports);
    if (problem) throw new HarnessError(`OPENSHELL_E2E_REPORTS: ${problem}`);
  } catch (error) {
    if (error instanceof HarnessError) throw error;
    throw new HarnessError(
      `OPENSHELL_E2E_REPORTS: a folder that can be written to was expected: ${reports}: ${(error as Error).message}\n` +
        "  Name another one with --reports",
    );
  }
  return reports;
}

/**
 * Removes the files of the run before, so that a run which comes to nothing does not leave them for its own.
 * @throws HarnessError when they cannot be removed.
 */
export function clearReports(reports: string): void {
  try {
    whileLocked(reports, () => {
      const problem = foreignFile(reports);
      if (problem) throw new Error(problem);
      for (const name of NAMES) rmSync(join(reports, name), { recursive: true, force: true });
    });
  } catch (error) {
    throw new HarnessError(
      `OPENSHELL_E2E_REPORTS: the files of the run before cannot be removed: ${(error as Error).message}`,
    );
  }
}

/** What is to be written of a run. */
export interface Reporting {
  /** What was recorded, or what reads it. */
  entries: Entry[] | (() => Entry[]);
  reports: string;
  /** Whose logs are kept, and whose table of the rules; of a run without a folder there are none. */
  run?: RunFolder;
  /** The table of the rules, of a run without a folder. */
  conformance?: string;
  /** Leaves out what was recorded before, in milliseconds since 1970: see `assemble`. */
  since?: number;
  /** Writes nothing where a run that began later has left its files: for a run that ended some time ago. */
  unlessLater?: boolean;
}

/** What came of it. */
export interface Reported {
  /** Why nothing was written, in one line. */
  problem?: string;
  /** The results, where something is to be explained. */
  results?: Results;
}

/**
 * Writes the files of a run: all of them or none. Those of the run before are replaced, and those that this run does not
 * have are removed. Without a scenario on record there are only logs. Never throws: whatever happens here, there is more
 * to clear away.
 */
export function writeReports({
  entries,
  reports,
  run,
  conformance,
  since,
  unlessLater,
}: Reporting): Reported {
  let results: Results | undefined;
  if (run && !run.isThere)
    return {
      problem: `the run's folder was removed or replaced while the run went on, and what it would report with it: ${run.folder}`,
    };
  try {
    const assembled = assemble(typeof entries === "function" ? entries() : entries, since);
    results = assembled && redactResults(assembled);
    if (!results && !run) return {};
    const problem = makeFolder(reports) ?? foreignFile(reports);
    if (problem) throw new Error(problem);
    whileLocked(reports, () => {
      const later = unlessLater && results && startOf(reports) > results.run.startedAt;
      if (later) return;
      const fresh = join(reports, FRESH);
      try {
        rmSync(fresh, { recursive: true, force: true });
        mkdirSync(fresh);
        if (run) {
          saveLogs(run, join(fresh, LOGS));
          const table = join(run.folder, CONFORMANCE);
          if (existsSync(table)) conformance ??= readFileSync(table, "utf8");
        }
        if (results) {
          writeFileSync(join(fresh, RESULTS), JSON.stringify(results));
          writeFileSync(join(fresh, JUNIT), junit(results));
          if (conformance !== undefined) writeFileSync(join(fresh, CONFORMANCE), conformance);
        }
        replace(reports, fresh, results ? NAMES : readdirSync(fresh));
      } finally {
        rmSync(fresh, { recursive: true, force: true });
      }
    });
  } catch (error) {
    const problem = `the reports are not written: ${reports}: ${(error as Error).message}`;
    return { problem, ...withFailures(results) };
  }
  return withFailures(results);
}

/** The results, if there is something in them to be explained: they are large, and may have a way to go. */
const withFailures = (results: Results | undefined): Reported =>
  results?.scenarios.some(({ verdict }) => isRed(verdict)) ? { results } : {};

/**
 * Puts another JUnit report, one of the tests besides the scenarios, in place of that of a run. Does nothing where the
 * files in the folder are another run's.
 * @throws Error when it cannot be written.
 */
export function replaceJunit(reports: string, run: string | undefined, text: string): void {
  whileLocked(reports, () => {
    const published = publishedRun(reports);
    if (published && published.id !== run) return;
    const fresh = join(reports, FRESH);
    try {
      writeFileSync(fresh, text);
      renameSync(fresh, join(reports, JUNIT));
    } finally {
      rmSync(fresh, { force: true });
    }
  });
}

/** Takes the old files away before it puts the first new one there: whoever is killed here mixes no two runs. */
function replace(reports: string, fresh: string, names: string[]): void {
  const old = join(fresh, "old");
  mkdirSync(old);
  for (const name of names)
    if (existsSync(join(reports, name))) renameSync(join(reports, name), join(old, name));
  for (const name of NAMES)
    if (existsSync(join(fresh, name))) renameSync(join(fresh, name), join(reports, name));
}

/** What is kept of a log, in bytes. */
const LONGEST_SAVED = 2 ** 23;

/** Copies a run's logs to where they can be read after it. */
function saveLogs(run: RunFolder, target: string): void {
  shareSecrets(run.folder);
  mkdirSync(target);
  writeFileSync(join(target, LOGS_MARK), run.id);
  for (const file of new Bun.Glob("**/*.{log,toml}").scanSync(run.folder)) {
    if (file.includes("home/")) continue;
    const log = join(run.folder, file);
    // A driver may put a link in a log's place, which leads to what is nobody's business.
    if (lstatSync(log, { throwIfNoEntry: false })?.isSymbolicLink()) continue;
    writeFileSync(join(target, savedName(file)), readableWhole(readLog(log, LONGEST_SAVED)));
  }
}

/** The longest file name that is kept as it is, in bytes: file systems allow 255, and folders are put in front of it. */
const LONGEST_NAME = 200;

/** A log's path as a name; of one that is too long its end, and what tells it from others of that end. */
function savedName(path: string): string {
  const name = path.replaceAll("/", "-");
  if (Buffer.byteLength(name) <= LONGEST_NAME) return name;
  const digest = new Bun.CryptoHasher("sha256").update(name).digest("hex").slice(0, 8);
  return `${digest}-${name.slice(-LONGEST_NAME / 4)}`;
}

/** The run whose results are in the folder. */
function publishedRun(reports: string): Results["run"] | undefined {
  try {
    return (JSON.parse(readFileSync(join(reports, RESULTS), "utf8")) as Results).run;
  } catch {
    return undefined;
  }
}

const startOf = (reports: string): string => publishedRun(reports)?.startedAt ?? "";

/**
 * Makes the folder, unless it is there. Returns why it is no folder for reports.
 * @throws Error when it can neither be made nor written to.
 */
function makeFolder(reports: string): string | undefined {
  if (reports === "/") return `a folder of its own was expected: ${reports}`;
  // Through a link files would be replaced elsewhere; and it may lead to another place later.
  if (lstatSync(reports, { throwIfNoEntry: false })?.isSymbolicLink())
    return `${reports} is a symbolic link. Name the folder that it leads to`;
  mkdirSync(reports, { recursive: true });
  accessSync(reports, constants.W_OK | constants.X_OK);
  return undefined;
}

/** What a run would replace in the folder although no run wrote it. */
function foreignFile(reports: string): string | undefined {
  const isOurs = (name: string) => {
    const path = join(reports, name);
    if (name === LOGS) return isOurLogs(path);
    if (name === LOCK) return isFile(path);
    return begins(path, FILES[name]!);
  };
  const foreign = [...NAMES, LOCK].find((name) => !isOurs(name));
  return (
    foreign &&
    `a run replaces ${join(reports, foreign)}, which ${foreign === LOGS ? "holds what no run wrote" : "no run wrote"}. ` +
      "Move that away, or name another folder"
  );
}

/** Whether a run wrote that folder of logs, or nobody has written anything there yet. */
function isOurLogs(logs: string): boolean {
  const found = lstatSync(logs, { throwIfNoEntry: false });
  if (!found?.isDirectory()) return !found;
  try {
    // One look: another run may replace it between two.
    const files = readdirSync(logs);
    return files.length === 0 || files.includes(LOGS_MARK);
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "ENOENT";
  }
}

/** Whether that is a regular file, or nothing: opening a pipe may wait for ever. */
const isFile = (path: string): boolean => lstatSync(path, { throwIfNoEntry: false })?.isFile() ?? true;

/** Whether a file begins like that; one that is empty, or not there, does. */
function begins(path: string, head: RegExp): boolean {
  if (!isFile(path)) return false;
  let file: number | undefined;
  try {
    file = openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
    const bytes = Buffer.alloc(HEAD);
    const length = readSync(file, bytes, 0, HEAD, 0);
    return fstatSync(file).isFile() && (length === 0 || head.test(bytes.toString("utf8", 0, length)));
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "ENOENT";
  } finally {
    if (file !== undefined) closeSync(file);
  }
}

/**
 * Does work while no other run does any in that folder. SQLite's lock is one that the kernel takes back when its owner
 * dies, so none is ever stale. Where a file system has no locks, as on some networks, it does without.
 * @throws Error when another run holds it for too long, or what `work` throws.
 */
function whileLocked(reports: string, work: () => void): void {
  let lock: Database | undefined;
  try {
    lock = new Database(join(reports, LOCK), { create: true });
    lock.run(`PRAGMA busy_timeout = ${LOCK_DEADLINE_MS}`);
    lock.run("PRAGMA journal_mode = MEMORY");
    lock.run("BEGIN EXCLUSIVE");
  } catch (error) {
    if ((error as { code?: string }).code === "SQLITE_BUSY")
      throw new Error(`another run has been writing there for ${LOCK_DEADLINE_MS / 1000} s`, {
        cause: error,
      });
  }
  try {
    work();
  } finally {
    lock?.close();
  }
}
