// SPDX-License-Identifier: Apache-2.0

/**
 * Which process serves, of those that a command line started. A driver is often started by a program that stays in front
 * of it (`npx`, `go run`, `sh -c 'driver & wait'`) and hands on no signal, so a signal is sent to the server itself. The
 * program in front then ends with it, and with its exit code. A signal to the whole process group would do for that; but
 * it would reach the sandboxes, too, where they are processes, and those outlive their driver.
 */
import { readdirSync, readFileSync, readlinkSync } from "node:fs";
import { birthOf, kill, processTable, type RunProcess } from "./processes.ts";

/** A process, told from a later one with its pid. */
export type Known = Pick<RunProcess, "pid" | "birth">;

/** The kernel's table may miss a socket while it changes: it is read so often before it counts. */
const LOOKS = 3;

/**
 * The process that listens on a socket, of `leader` and all that it started, the nearest to `leader` first.
 * @returns undefined if none does, or where there is no /proc to tell
 */
export function servingProcess(leader: number): Known | undefined {
  if (process.platform !== "linux") return undefined;
  for (let look = 0; look < LOOKS; look++) {
    const listening = listeningSockets();
    if (listens(leader, listening)) return { pid: leader, birth: birthOf(leader) };
    const started = descendants(leader);
    if (started.length === 0) return undefined;
    const found = started.find(({ pid }) => listens(pid, listening));
    if (found) return found;
  }
  return undefined;
}

/** What a process started, and what that started, the nearest first. */
export function descendants(leader: number): Known[] {
  const byParent = Map.groupBy(processTable(), ({ parent }) => parent);
  const found: Known[] = [];
  let generation = [leader];
  while (generation.length > 0) {
    const next = generation.flatMap((pid) => byParent.get(pid) ?? []);
    found.push(...next);
    generation = next.map(({ pid }) => pid);
  }
  return found;
}

/** Sends a signal to a process, unless it has ended since it was seen. */
export function signalTo(known: Known, signal: NodeJS.Signals): void {
  if (signal === "SIGKILL") return kill(known);
  if (birthOf(known.pid) !== known.birth) return;
  try {
    process.kill(known.pid, signal);
  } catch {
    // It ended meanwhile.
  }
}

/** All sockets that listen, as /proc/PID/fd names them: Unix sockets, and those of TCP, on which gateways are. */
function listeningSockets(): Set<string> {
  const rows = (name: string) =>
    readFileSync(`/proc/net/${name}`, "latin1")
      .split("\n")
      .map((line) => line.trim().split(/\s+/));
  // Flags and inode; __SO_ACCEPTCON marks a listening socket.
  const unix = rows("unix").flatMap((row) => (row[3] === "00010000" ? [row[6]] : []));
  // State and inode; 0A is LISTEN. A kernel without IPv6 has no tcp6.
  const tcp = ["tcp", "tcp6"].flatMap((name) => {
    try {
      return rows(name).flatMap((row) => (row[3] === "0A" ? [row[9]] : []));
    } catch {
      return [];
    }
  });
  return new Set([...unix, ...tcp].map((inode) => `socket:[${inode}]`));
}

function listens(pid: number, listening: Set<string>): boolean {
  try {
    return readdirSync(`/proc/${pid}/fd`).some((fd) => {
      try {
        return listening.has(readlinkSync(`/proc/${pid}/fd/${fd}`));
      } catch {
        return false;
      }
    });
  } catch {
    // Gone, or another user's.
    return false;
  }
}
