// SPDX-License-Identifier: Apache-2.0

/** A process of ours that another one of ours started ends with it, also when that is killed and can say nothing. */

/** In the environment of such a process: the pid of the one that started it. */
const STARTER = "OPENSHELL_E2E_STARTER";
/** How often it is looked whether that one is there, in milliseconds. */
const LOOK_MS = 200;

/** What a child that is to end with this process has in its environment. */
export const endingWithUs = (): Record<string, string> => ({ [STARTER]: String(process.pid) });

/**
 * Ends this process (and by that, through its keeper, all that it had started) once the one that started it is gone. Does
 * nothing in a process that a user started. To be called before anything is started: what that inherits is not ours.
 */
export function endWithStarter(): void {
  const starter = Number(process.env[STARTER] ?? 0);
  delete process.env[STARTER];
  if (starter === 0) return;
  setInterval(() => {
    if (process.ppid !== starter) process.exit(SIGKILLED);
  }, LOOK_MS).unref();
}

/** As a shell tells of a process that was killed. */
const SIGKILLED = 137;
