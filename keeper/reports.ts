// SPDX-License-Identifier: Apache-2.0

/** The folder in which a run leaves its results, and its logs in a folder of that, which each run replaces. */
import {
  accessSync,
  constants,
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  renameSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { HarnessError, type Settings } from "../harness.ts";
import { readLog } from "../report/log.ts";
import { readableWhole } from "../report/readable.ts";
import { shareSecrets } from "../report/secrets.ts";
import type { Run } from "./run.ts";

/** In a folder of logs that a run wrote: nobody else's is ever removed. */
const LOGS_MARK = ".openshell-e2e";

/**
 * Makes the reports' folder, before anything is started. Returns its path.
 * @throws HarnessError when nothing can be written there, or the logs there are not a run's.
 */
export function openReports({ reports }: Settings): string {
  try {
    mkdirSync(reports, { recursive: true });
    accessSync(reports, constants.W_OK | constants.X_OK);
  } catch (error) {
    throw new HarnessError(
      `OPENSHELL_E2E_REPORTS: a folder that can be written to was expected: ${reports}: ${(error as Error).message}`,
    );
  }
  const logs = join(reports, "logs");
  if (!isReplaceable(logs))
    throw new HarnessError(
      `OPENSHELL_E2E_REPORTS: a run replaces ${logs}, which holds what no run wrote. Move that away, or name another folder`,
    );
  return reports;
}

/** Whether a run wrote that folder of logs, or nobody has written anything there yet. */
function isReplaceable(logs: string): boolean {
  try {
    // A link may lead to what is not a run's.
    if (lstatSync(logs).isSymbolicLink()) return false;
    // One look: another run may replace it between two.
    const files = readdirSync(logs);
    return files.length === 0 || files.includes(LOGS_MARK);
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "ENOENT";
  }
}

/** What is kept of a log, in bytes. */
const LONGEST_SAVED = 2 ** 23;

/** Copies a run's logs to where they can be read after it; those of the run before are replaced. */
export function saveLogs(run: Run, reports: string): void {
  const target = join(reports, "logs");
  shareSecrets(run.folder);
  // It was, when the run began.
  if (!isReplaceable(target)) return;
  const fresh = `${target}.${run.id}`;
  mkdirSync(fresh);
  writeFileSync(join(fresh, LOGS_MARK), "");
  for (const file of new Bun.Glob("**/*.{log,toml}").scanSync(run.folder)) {
    if (file.includes("home/")) continue;
    const log = join(run.folder, file);
    // A driver may put a link in a log's place, which leads to what is nobody's business.
    if (lstatSync(log, { throwIfNoEntry: false })?.isSymbolicLink()) continue;
    writeFileSync(join(fresh, savedName(file)), readableWhole(readLog(log, LONGEST_SAVED)));
  }
  replace(target, fresh);
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

/** Puts `fresh` in the place of a folder, whole at every moment: runs may end, and others begin, at once. */
function replace(target: string, fresh: string): void {
  const old = `${fresh}.old`;
  for (let attempt = 1; ; attempt++) {
    try {
      if (existsSync(target)) renameSync(target, old);
      renameSync(fresh, target);
      return;
    } catch (error) {
      // Another run has just done the same: its logs are those of the run before now.
      if (!["ENOENT", "ENOTEMPTY", "EEXIST"].includes((error as NodeJS.ErrnoException).code ?? ""))
        throw error;
    } finally {
      rmSync(old, { recursive: true, force: true });
    }
  }
}
