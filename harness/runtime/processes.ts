// SPDX-License-Identifier: Apache-2.0

/**
 * The processes of a run: those that carry its mark, and what they started. Whoever is ended here is ended with SIGKILL,
 * so what is not certainly of a run is not of it.
 *
 * A process can drop its mark (`env -i`, or a title written over its environment). As long as its parent is known it is
 * found all the same; what was seen once is known again by its pid and its birth. One that drops the mark and leaves its
 * parent before anybody has looked is beyond what can be known.
 */
import { readdirSync, readFileSync, statSync } from "node:fs";
import { urlPath } from "../base/machine.ts";
import { COMMAND_MARK, isRunId, RUN_MARK, type RunFolder } from "./marks.ts";

/** What the files of a container of the fake engine are known by: its processes carry no other mark. */
const FAKE_ROOT = "OPENSHELL_FAKE_ROOT";

/** A process that was seen. */
export interface RunProcess {
  pid: number;
  /** When it was born, in the system's own words: a pid is given away again, and then with another birth. */
  birth: string;
  /** Its command line, on one line. */
  command: string;
  /** Whether it is the run's engine. A real one bears no mark: it would hand it on to what all containers of its user share. */
  isEngine: boolean;
}

interface Listed extends Omit<RunProcess, "isEngine"> {
  parent: number;
  uid: number;
  words: string[];
  environment: string[];
}

const LINUX = process.platform === "linux";
/** Longer command lines are cut where they are told. */
const TOLD = 200;

/** All processes that this user can look into. */
export function processTable(): Listed[] {
  if (!LINUX) return listedByPs();
  return readdirSync("/proc")
    .filter((name) => /^\d+$/.test(name))
    .flatMap((pid) => {
      try {
        const fields = statFields(Number(pid));
        const environment = readFileSync(`/proc/${pid}/environ`, "utf8").split("\0");
        const words = readFileSync(`/proc/${pid}/cmdline`, "utf8").split("\0");
        const { uid } = statSync(`/proc/${pid}`);
        const command = words.join(" ").trim();
        const [parent, birth] = [Number(fields[PARENT]), fields[BIRTH]!];
        return [{ pid: Number(pid), parent, birth, uid, words, command, environment }];
      } catch {
        // Gone meanwhile, or another user's.
        return [];
      }
    });
}

/** Among the fields of /proc/PID/stat from the third on: ppid, and when it was born, in ticks since the machine was. */
const [PARENT, BIRTH] = [1, 19];

function statFields(pid: number): string[] {
  const text = readFileSync(`/proc/${pid}/stat`, "latin1");
  // The name, in parentheses, may hold anything.
  return text.slice(text.lastIndexOf(")") + 2).split(" ");
}

/** The same on other systems, which tell environment and arguments as one text: a word with spaces in it is several. */
function listedByPs(): Listed[] {
  const columns = ["pid=", "ppid=", "uid=", "lstart=", "command="].flatMap((column) => ["-o", column]);
  const table = Bun.spawnSync(["ps", "-axEww", ...columns]).stdout.toString();
  return table.split("\n").flatMap((line) => {
    const [, pid, parent, uid, birth, command] =
      /^\s*(\d+)\s+(\d+)\s+(\d+)\s+(\S+\s+\S+\s+\S+\s+\S+\s+\S+)\s+(.*)$/.exec(line) ?? [];
    if (!pid || !birth || command === undefined) return [];
    const words = command.split(" ");
    return [
      {
        pid: Number(pid),
        parent: Number(parent),
        birth,
        uid: Number(uid),
        words,
        command,
        environment: words,
      },
    ];
  });
}

/** When a process was born; "" if there is none. One that has ended and waits for its parent to ask is none. */
export function birthOf(pid: number): string {
  if (!LINUX)
    return Bun.spawnSync(["ps", "-o", "lstart=", "-p", String(pid)])
      .stdout.toString()
      .trim();
  try {
    const fields = statFields(pid);
    return fields[0] === "Z" ? "" : fields[BIRTH]!;
  } catch {
    return "";
  }
}

/** How far apart two clocks of a machine may be, in milliseconds. */
const CLOCKS_MS = 100;

/** Whether a process lives that was there at a moment, in milliseconds since 1970: not a later one with its pid. */
export function livedAt(pid: number, moment: number): boolean {
  const birth = birthOf(pid);
  if (birth === "") return false;
  if (!LINUX) return Date.parse(birth) <= moment + 1_000;
  const uptime = Number(readFileSync("/proc/uptime", "latin1").split(" ")[0]);
  return Date.now() - (uptime - Number(birth) / TICKS) * 1_000 <= moment + CLOCKS_MS;
}

/** What the kernel counts in a second, for programs. */
const TICKS = 100;

/** What a process of a run is known by. */
type Known = Pick<RunFolder, "id" | "folder">;

/** The engine's socket is an argument of the engine that a run starts, and of nothing else. */
const isEngineOf = ({ words }: Listed, { folder }: Known): boolean =>
  words.includes(`unix://${urlPath(folder)}/engine.sock`);

const isMarked = ({ environment }: Listed, { id, folder }: Known): boolean =>
  environment.includes(`${RUN_MARK}=${id}`) ||
  environment.some((entry) => entry.startsWith(`${FAKE_ROOT}=${folder}/`));

/** The processes that `first` chooses, and all that descend from them, by pid. */
function withDescendants(table: Listed[], first: (process: Listed) => boolean): Set<number> {
  const found = new Set(table.filter(first).map(({ pid }) => pid));
  for (let before = -1; before < found.size;) {
    before = found.size;
    for (const { pid, parent } of table) if (found.has(parent)) found.add(pid);
  }
  // Whoever asks may have been started by one of them.
  found.delete(process.pid);
  return found;
}

/** The processes of commands that `with` runs, by their marks, and what they started. */
export function commandProcesses(marks: string[]): RunProcess[] {
  if (marks.length === 0) return [];
  const entries = new Set(marks.map((mark) => `${COMMAND_MARK}=${mark}`));
  const table = processTable();
  const found = withDescendants(table, ({ environment }) => environment.some((entry) => entries.has(entry)));
  return table.filter(({ pid }) => found.has(pid)).map((each) => seen(each, false));
}

/** The processes of a run that live: those that carry its mark, what they started, and its engine. */
export function processesOf(run: Known): RunProcess[] {
  const table = processTable();
  const found = withDescendants(table, (each) => isMarked(each, run));
  for (const each of table) if (isEngineOf(each, run)) found.add(each.pid);
  return table.filter(({ pid }) => found.has(pid)).map((each) => seen(each, isEngineOf(each, run)));
}

const seen = ({ pid, birth, command }: Listed, isEngine: boolean): RunProcess => ({
  pid,
  birth,
  // A script that a shell was given has lines, and each process is to be one.
  command: command.replaceAll(/\s+/g, " ").slice(0, TOLD),
  isEngine,
});

/** Kills (SIGKILL) a process that was seen, unless it has ended since, and its pid perhaps is another's. */
export function kill({ pid, birth }: Pick<RunProcess, "pid" | "birth">): void {
  if (birthOf(pid) !== birth) return;
  try {
    process.kill(pid, "SIGKILL");
  } catch {
    // That is what was wanted.
  }
}

/** As it is told of, and swept. */
export const describeProcess = ({ pid, command }: RunProcess | Listed): string =>
  `process ${pid} (${command})`;

/**
 * The runs of one folder for runs, by id, that have processes of this user and nobody who will end them: no keeper and no
 * guard, whose command lines name the run's folder, and no test process, whose children its gateways are. What is left
 * when a run's folder was removed behind its back.
 *
 * A mark alone does not tell where its run lives: the run may be a live one of another folder for runs. So only what was
 * given a place below this folder counts (a HOME, or the files of its container), and only if two looks agree: a process
 * table is read one process after the other, and a keeper may end meanwhile.
 * @param root the folder for runs
 */
export function strayRuns(root: string): string[] {
  const first = straysIn(root);
  if (first.length === 0) return [];
  const second = new Set(straysIn(root));
  return first.filter((id) => second.has(id));
}

function straysIn(root: string): string[] {
  const me = process.geteuid?.();
  const table = processTable().filter(({ uid }) => uid === me);
  const byPid = new Map(table.map((each) => [each.pid, each]));
  const members = new Map<string, Set<Listed>>();
  for (const each of table)
    for (const id of idsIn(each, root)) members.set(id, (members.get(id) ?? new Set()).add(each));
  const isKept = (id: string, own: Set<Listed>) => {
    const named = new RegExp(`/${id}(?![^\\s\\0])`);
    const hasKeeper = table.some((each) => !own.has(each) && named.test(each.words.join("\0")));
    const owners = [...own].flatMap(({ parent }) => byPid.get(parent) ?? []);
    return hasKeeper || owners.some((owner) => owner.pid !== 1 && !own.has(owner) && isBun(owner));
  };
  return [...members].filter(([id, own]) => !isKept(id, own)).map(([id]) => id);
}

const isBun = ({ words: [program = ""] }: Listed): boolean => /(^|\/)bun[^/]*$/.test(program);

/** The runs that a process says it is of, of those that lived in that folder. */
function idsIn({ environment }: Listed, root: string): string[] {
  const start = `${root}/`;
  const places = environment.flatMap((entry) => {
    const [name = "", value = ""] = entry.split(/=(.*)/s);
    return value.startsWith(start) ? [{ name, id: value.slice(start.length).split("/")[0]! }] : [];
  });
  const ids = places
    .filter(({ name, id }) => name === FAKE_ROOT || environment.includes(`${RUN_MARK}=${id}`))
    .map(({ id }) => id);
  return [...new Set(ids.filter(isRunId))];
}
