// SPDX-License-Identifier: Apache-2.0

/** A run: its id, its private folder, and how what belongs to it is known. */
import { randomBytes } from "node:crypto";
import {
  accessSync,
  appendFileSync,
  constants,
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  statfsSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { basename, join, resolve } from "node:path";
import { HarnessError } from "../base/errors.ts";
import { ADVICE, checkLimits, longestSocket, programsProblem, roomFor, userId } from "../base/machine.ts";
import { isOurFolder, isOurs, sharingProblem } from "../base/owner.ts";
import { removeTree } from "../base/remove.ts";
import { isSandboxId } from "../base/sandbox-id.ts";
import type { Settings } from "../base/settings.ts";
import { textOf } from "../base/file.ts";
import { isStopped } from "../base/system.ts";
import { whoAnswers } from "./control-line.ts";
import { isRunId } from "./marks.ts";
import { livedAt } from "./processes.ts";
import { openReports } from "./reports.ts";

/** How the name of a file begins that tells of a command which runs; its mark comes next. */
const COMMAND_FILE = "command-";

const COMMAND = /^command-[0-9a-f-]{36}$/;

/** The pid of a run's keeper. It is in the run's folder from first to last, and tells it from anybody else's folder. */
export const KEEPER_PID = "keeper.pid";
/** The pid of the process that started the keeper; where a test process is its own keeper, there is none. */
export const STARTER = "starter";

/** A keeper that is only just starting has no control socket yet; it has one after so long, in milliseconds. */
const YOUNG_MS = 20_000;

/** A RAM disk, where a system has one that everybody may use. */
const MEMORY = "/dev/shm";

/** The smallest that counts, in bytes: what a container has by default, 64 MiB, one run may fill. */
const ROOMY = 2 ** 30;

/**
 * The folder in which runs are, unless somebody names another. A fake engine makes and removes thousands of small files: in
 * memory that is nothing, on a disk a fifth of a run's work and more. What containers run is started from there, so where
 * one of the two places allows that, it is that one.
 * @param mounts the system's table, as in /proc/mounts
 */
export function usualPlace(mounts = mountTable()): string {
  const memory = memoryProblem(mounts) ? [] : [MEMORY];
  const places = process.env.TMPDIR ? [tmpdir(), ...memory] : [...memory, tmpdir()];
  return places.find((place) => !programsProblem(place)) ?? tmpdir();
}

/** The system's table of mounts; empty where it has none. */
const mountTable = (): string => (existsSync("/proc/mounts") ? readFileSync("/proc/mounts", "utf8") : "");

/** Why runs are not kept in memory; undefined if they can be. */
export function memoryProblem(mounts = mountTable()): string | undefined {
  const mount = mounts.split("\n").findLast((line) => line.split(" ")[1] === MEMORY);
  if (mount?.split(" ")[2] !== "tmpfs") return `there is no RAM disk at ${MEMORY}`;
  const { blocks, bsize } = statfsSync(MEMORY);
  if (blocks * bsize < ROOMY) return `${MEMORY} is smaller than a GiB`;
  const problem = programsProblem(MEMORY);
  return problem && `${MEMORY}: ${problem}`;
}

/** The id of a new run: 8 hex digits. */
export const newRunId = (): string => randomBytes(4).toString("hex");

/** One run: its id, and the private folder that holds all it makes on disk. */
export class Run {
  private constructor(
    readonly id: string,
    readonly folder: string,
  ) {}

  /** Where the runs of this user live. */
  static root(settings: Settings): string {
    return settings.runDir || join(usualPlace(), `openshell-e2e-${userId()}`);
  }

  /**
   * A new run, of which nothing is on disk yet.
   * @throws HarnessError when the folder or the limits of this process do not do for a run, others could reach into the
   * folder, or its results could not be written.
   */
  static create(settings: Settings): Run {
    const id = newRunId();
    const run = new Run(id, join(Run.root(settings), id));
    const root = Run.root(settings);
    checkLimits();
    longestSocket(root);
    makePrivate(root);
    roomFor(root);
    openReports(settings);
    return run;
  }

  /**
   * The run of a folder, for its keeper and its guard, who know that it is one.
   * @throws HarnessError for what cannot be one: no folder, a link to one, another user's, or a name that is no run's id.
   */
  static open(folder: string): Run {
    const path = resolve(folder);
    if (!isRunFolder(path))
      throw new HarnessError(
        `${folder} is not the folder of a run: a folder named by 8 hex digits was expected, this user's alone`,
      );
    return new Run(basename(path), path);
  }

  /**
   * The run of a folder that may be gone, or have a link in its place, for whoever knows that it was one: its processes are known without it.
   * @throws HarnessError for what cannot have been one.
   */
  static of(folder: string): Run {
    const path = resolve(folder);
    const isReplaced = lstatSync(path, { throwIfNoEntry: false })?.isSymbolicLink() ?? true;
    if (!isReplaced || !isRunId(basename(path))) return Run.open(folder);
    return new Run(basename(path), path);
  }

  /**
   * Every run of this user that left a folder, alive or dead. In a folder like /tmp there may be runs of others, too.
   * @throws HarnessError when others could have put them there in this user's name.
   */
  static all(settings: Settings): Run[] {
    const root = Run.root(settings);
    if (!existsSync(root)) return [];
    mustBePrivate(root);
    return (
      readdirSync(root)
        .map((name) => new Run(name, join(root, name)))
        // A run that was killed before it wrote anything leaves its folder empty.
        .filter((run) => isRunFolder(run.folder) && (run.isMarked || isEmpty(run.folder)))
    );
  }

  /** Whether its folder is there, and is no link to another one. */
  get isThere(): boolean {
    return isRunFolder(this.folder);
  }

  /** Whether a run wrote what is in the folder. */
  get isMarked(): boolean {
    return existsSync(join(this.folder, KEEPER_PID));
  }

  /** The process that it was started by, and for which it is cleared away; 0 if nobody knows any more. */
  get starter(): number {
    const [pid] = [STARTER, KEEPER_PID].flatMap((name) => textOf(join(this.folder, name)) ?? []);
    return Number(pid) || 0;
  }

  /** Whether its keeper is there, also when it does not answer, or is only just starting. */
  async isLive(): Promise<boolean> {
    return (await this.state()) !== "dead";
  }

  /** "silent" is a keeper that is there and gives no sign of life: it is stopped or stuck. */
  async state(): Promise<"alive" | "silent" | "dead"> {
    const who = isOurs(this.controlSocket) ? await whoAnswers(this.controlSocket) : "nobody";
    if (who === "silent") return "silent";
    return who === "keeper" || this.#isStarting() ? "alive" : "dead";
  }

  /** What is wrong with a keeper that gives no sign of life, and what to do. */
  get silence(): string {
    const pid = this.#keeperPid;
    const stopped = isStopped(pid) ? `is stopped: \`kill -CONT ${pid}\` lets it go on` : "is stuck";
    return `its keeper (process ${pid}) does not answer, it ${stopped}; \`kill -KILL ${pid}\` ends its run, and leaves nothing`;
  }

  #isStarting(): boolean {
    const written = statSync(join(this.folder, KEEPER_PID), { throwIfNoEntry: false });
    if (written && !livedAt(this.#keeperPid, written.mtimeMs)) return false;
    const made = statSync(this.folder, { throwIfNoEntry: false });
    return made !== undefined && Date.now() - made.ctimeMs < YOUNG_MS;
  }

  /** 0 where the file holds none. */
  get #keeperPid(): number {
    return Number(textOf(join(this.folder, KEEPER_PID))) || 0;
  }

  get controlSocket(): string {
    return join(this.folder, "keeper.sock");
  }

  /** Remembers a sandbox, so that its volume and secrets are found even when its container is gone. */
  remember(sandboxId: string): void {
    appendFileSync(join(this.folder, "sandboxes"), `${sandboxId}\n`);
  }

  /** The sandboxes that were remembered. Its last line may be half a one, of a keeper that was killed. */
  get sandboxIds(): string[] {
    const text = this.isThere ? textOf(join(this.folder, "sandboxes")) : undefined;
    return (text ?? "").split("\n").filter(isSandboxId);
  }

  /** The marks of the commands that `with` runs. */
  get commands(): string[] {
    if (!this.isThere) return [];
    const names = readdirSync(this.folder).filter((name) => COMMAND.test(name));
    return names.map((name) => name.slice(COMMAND_FILE.length));
  }

  noteCommand(mark: string): void {
    if (COMMAND.test(`${COMMAND_FILE}${mark}`))
      writeFileSync(join(this.folder, `${COMMAND_FILE}${mark}`), "");
  }

  forgetCommand(mark: string): void {
    if (COMMAND.test(`${COMMAND_FILE}${mark}`)) removeTree(join(this.folder, `${COMMAND_FILE}${mark}`));
  }

  /** What a sweep must know to reach the run's engine again; somebody else's has no command. Whole, or not there: its writer may be killed meanwhile. */
  set engine(engine: { socket: string; command: string[] }) {
    const file = join(this.folder, "engine.json");
    writeFileSync(`${file}.new`, JSON.stringify(engine));
    renameSync(`${file}.new`, file);
  }

  /** Undefined if there is none yet, "unknown" if what is written there is not what we write. */
  get engine(): { socket: string; command: string[] } | "unknown" | undefined {
    const file = join(this.folder, "engine.json");
    if (!this.isThere || !existsSync(file)) return undefined;
    try {
      const { socket, command } = JSON.parse(textOf(file) ?? "") as Record<string, unknown>;
      const isText = (value: unknown): value is string => typeof value === "string";
      if (isText(socket) && Array.isArray(command) && command.every(isText)) return { socket, command };
    } catch {
      // Half a file, or none that can be read.
    }
    return "unknown";
  }

  /** Removes its folder, if it is there. What a kill leaves of it in the midst of that is still known as a run's. */
  remove(): void {
    this.#removeAllBut([KEEPER_PID]);
    removeTree(this.folder);
  }

  /** Removes all of its folder that a later sweep of its engine does not need: keys, and tokens, and logs. */
  strip(): void {
    this.#removeAllBut([KEEPER_PID, "engine.json", "sandboxes", "engine"]);
  }

  #removeAllBut(kept: string[]): void {
    if (!lstatSync(this.folder, { throwIfNoEntry: false })) return;
    if (!this.isThere) throw new HarnessError(`${this.folder} is not the folder of a run`);
    for (const name of readdirSync(this.folder))
      if (!kept.includes(name)) removeTree(join(this.folder, name));
  }
}

/** Whether a path is a folder of this user's alone, named as runs are. A symbolic link is none, wherever it leads. */
const isRunFolder = (path: string): boolean => isRunId(basename(path)) && isOurFolder(path);

function isEmpty(folder: string): boolean {
  try {
    return readdirSync(folder).length === 0;
  } catch {
    // Gone meanwhile, or another user's.
    return false;
  }
}

/** Makes the folder of all runs, or makes sure that a folder which is there can be trusted: anybody may have made it first. */
function makePrivate(root: string): void {
  try {
    mkdirSync(root, { recursive: true, mode: 0o700 });
  } catch (error) {
    throw new HarnessError(`The folder for runs cannot be made: ${(error as Error).message}. ${ADVICE}`);
  }
  mustBePrivate(root);
}

/**
 * @throws HarnessError when this user cannot work in that folder, or when somebody else could exchange the runs there:
 * nothing in it is to be believed then.
 */
function mustBePrivate(root: string): void {
  try {
    accessSync(root, constants.R_OK | constants.W_OK | constants.X_OK);
  } catch (error) {
    throw new HarnessError(`The folder for runs cannot be used: ${(error as Error).message}. ${ADVICE}`);
  }
  const seen = sharingProblem(root);
  if (seen)
    throw new HarnessError(
      `The folder for runs is not safe, others can write to it: ${root} (${seen}). ${ADVICE}`,
    );
}

/** A process' resident memory, in megabytes; NaN when it is gone. */
export function residentMegabytes(pid: number): number {
  const status = `/proc/${pid}/status`;
  const kilobytes = existsSync("/proc/self")
    ? existsSync(status) && /VmRSS:\s+(\d+)/.exec(readFileSync(status, "utf8"))?.[1]
    : Bun.spawnSync(["ps", "-o", "rss=", "-p", String(pid)]).stdout.toString();
  return Math.round(Number(kilobytes || Number.NaN) / 1_024);
}
