// SPDX-License-Identifier: Apache-2.0

/** Questions to the operating system about sockets and processes. */
import { existsSync } from "node:fs";
import { connect as connectSocket } from "node:net";
import { textOf } from "./file.ts";

/** Whether somebody listens on a Unix socket. */
export function connectable(path: string): Promise<boolean> {
  return new Promise((done) => {
    const socket = connectSocket(path);
    const end = (listens: boolean) => {
      socket.destroy();
      done(listens);
    };
    // A reset may be told twice.
    socket.on("error", () => end(false)).once("connect", () => end(true));
  });
}

/** @throws Error that says why nobody can be asked on a Unix socket. */
export async function mustListen(path: string): Promise<void> {
  if (!existsSync(path)) throw new Error(`${path} does not exist`);
  // The file of a program that was killed stays until the next one binds.
  if (!(await connectable(path))) throw new Error(`nobody listens on ${path}`);
}

/** Whether a process is stopped, by SIGSTOP or a debugger. Where there is no /proc, nobody can tell. */
export function isStopped(pid: number): boolean {
  const state = textOf(`/proc/${pid}/stat`)?.split(") ").at(-1) ?? "";
  return /^[Tt]/.test(state);
}

/** Whether a process exists. */
export function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}
