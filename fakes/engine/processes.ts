// SPDX-License-Identifier: Apache-2.0

/** Processes of the host, and which of them are a container's: Linux by /proc, other systems by ps. */
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { constants as os } from "node:os";
import { type Container, type Monitor, rootfs } from "./container.ts";

const LINUX = process.platform === "linux";
const END_MS = 5_000;
/** How long a program may take to handle signals after its start, in milliseconds: Podman's own start takes longer. */
const YOUNG_MS = 50;
/** So many processes are fewer than Linux starts before it gives a pid away again. */
const FEW = 300;

interface Process {
  pid: number;
  parent: number;
  session: number;
  /** Its environment carries the mark that was looked for. */
  marked: boolean;
}

/** When a process was born, in the system's own words; "" if there is none (a zombie is none). */
export function birth(pid: number): string {
  if (!LINUX) return ps("-o", "lstart=", "-p", String(pid)).trim();
  try {
    const fields = statFields(pid);
    return fields[0] === "Z" ? "" : (fields[BORN] ?? "");
  } catch {
    return "";
  }
}

/** Among the fields of /proc/PID/stat, when the process was born, in ticks since the machine was. */
const BORN = 19;

/** /proc/PID/stat from the third field on: state, ppid, pgrp, session, … */
function statFields(pid: number): string[] {
  const text = readFileSync(`/proc/${pid}/stat`, "latin1");
  return text.slice(text.lastIndexOf(")") + 2).split(" ");
}

/** How many processes and threads the machine has started so far; NaN where nobody counts. */
export function startedSoFar(): number {
  return LINUX ? Number(/^processes (\d+)$/m.exec(readFileSync("/proc/stat", "latin1"))?.[1]) : NaN;
}

const ps = (...words: string[]): string => Bun.spawnSync(["ps", ...words]).stdout.toString();

/** Every process that this user can see and that may be younger than the monitor. */
function processes(mark: string, monitor: Monitor): Process[] {
  if (LINUX) return pidsSince(monitor).flatMap((pid) => processOf(pid, mark, Number(monitor.birth)));
  return ps("-axEww", "-o", "pid=,ppid=,pgid=,stat=,command=")
    .split("\n")
    .flatMap((line) => {
      const [, pid, parent, group, state, command] =
        /^\s*(\d+)\s+(\d+)\s+(\d+)\s+(\S+)\s+(.*)$/.exec(line) ?? [];
      if (!pid || !command || state?.startsWith("Z")) return [];
      const marked = `${command} `.includes(` ${mark} `);
      return [{ pid: Number(pid), parent: Number(parent), session: Number(group), marked }];
    });
}

/** Pids are given away in turn: on a machine with many processes few are younger than a container that lives for moments. */
function pidsSince({ pid, startedBefore }: Monitor): number[] {
  const last = Number(readFileSync("/proc/loadavg", "latin1").split(" ").at(-1));
  if (startedSoFar() - startedBefore < FEW && last >= pid && last < pid + 2 * FEW) {
    const younger = Array.from({ length: last - pid }, (_, index) => pid + 1 + index);
    return younger.filter((each) => existsSync(`/proc/${each}`));
  }
  return readdirSync("/proc").map(Number).filter(Boolean);
}

/** A process, or none if it ends while one looks. Of one that is older than the container the mark is not looked for. */
function processOf(pid: number, mark: string, since: number): Process[] {
  try {
    const fields = statFields(pid);
    const [state, parent, , session] = fields;
    if (state === "Z") return [];
    const marked = Number(fields[BORN]) >= since && carries(pid, mark);
    return [{ pid, parent: Number(parent), session: Number(session), marked }];
  } catch {
    return [];
  }
}

function carries(pid: number, mark: string): boolean {
  try {
    return `\0${readFileSync(`/proc/${pid}/environ`, "latin1")}`.includes(`\0${mark}\0`);
  } catch {
    // Another user's process: not ours.
    return false;
  }
}

/**
 * The pids of a container: the monitor's session, every process that carries the container's mark wherever it went,
 * and their descendants. Not the monitor itself.
 */
export function members(container: Container): number[] {
  const { monitor } = container;
  if (!monitor) return [];
  const all = processes(`OPENSHELL_FAKE_ROOT=${rootfs(container)}`, monitor);
  const inside = new Set(
    all.filter(({ session, marked }) => marked || session === monitor.pid).map(({ pid }) => pid),
  );
  for (let before = -1; before < inside.size;) {
    before = inside.size;
    for (const { pid, parent } of all) if (inside.has(parent)) inside.add(pid);
  }
  inside.delete(monitor.pid);
  inside.delete(process.pid);
  return [...inside].filter((pid) => !isThread(pid));
}

/** Linux shows a thread, too, to those who ask for its id. */
const isThread = (pid: number): boolean => Number(/^Tgid:\s*(\d+)$/m.exec(statusOf(pid))?.[1] ?? pid) !== pid;

/** /proc/PID/status; nothing of a process that is gone, or where there is no such file. */
function statusOf(pid: number): string {
  try {
    return readFileSync(`/proc/${pid}/status`, "latin1");
  } catch {
    return "";
  }
}

/** Signals a process that may be gone already. */
export function sendSignal(pid: number, name: NodeJS.Signals): void {
  try {
    process.kill(pid, name);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ESRCH") throw error;
  }
}

/**
 * Signals the container's first process. The kernel drops a signal to the first process of a PID namespace that has
 * no handler for it; a plain process would die of it, so ask first.
 */
export async function signalFirst({ pid, startedAt }: Container, name: NodeJS.Signals): Promise<void> {
  if (LINUX && name !== "SIGSTOP" && name !== "SIGCONT") {
    // By its age now; a clock that is set meanwhile makes nobody wait.
    const grownUp = performance.now() + Math.min(Date.parse(startedAt) - Date.now(), 0) + YOUNG_MS;
    while (!catches(pid, name)) {
      if (performance.now() > grownUp) return;
      await Bun.sleep(2);
    }
  }
  sendSignal(pid, name);
}

/** Whether a process has a handler for this signal. */
function catches(pid: number, name: NodeJS.Signals): boolean {
  const [, caught = "0"] = /^SigCgt:\s*([0-9a-f]+)$/m.exec(statusOf(pid)) ?? [];
  return (BigInt(`0x${caught}`) & (1n << BigInt(os.signals[name] - 1))) !== 0n;
}

/** Ends every process of a container, as the kernel does when a PID namespace loses its first process. */
export async function endProcesses(container: Container): Promise<void> {
  const deadline = performance.now() + END_MS;
  for (;;) {
    const left = members(container);
    if (left.length === 0) return;
    for (const pid of left) sendSignal(pid, "SIGKILL");
    // To look at these alone is much less work than to look for all of them again.
    while (performance.now() < deadline && left.some((pid) => birth(pid) !== "")) await Bun.sleep(2);
    if (performance.now() > deadline) {
      console.error(
        `container ${container.id}: processes ${left.join(", ")} outlived SIGKILL for ${END_MS} ms`,
      );
      return;
    }
  }
}
