// SPDX-License-Identifier: Apache-2.0

/**
 * Whose a folder or a socket is. Runs lie in places that others can write to (/dev/shm, /tmp) and name programs to be
 * started; what another user put there must be neither believed nor touched, least of all by root.
 */
import { lstatSync, statSync } from "node:fs";

/** The user that this process acts as; undefined on a system without users. */
const me = process.geteuid?.();

/** Whether a path exists and is this user's. Of a link, whether the link itself is. */
export const isOurs = (path: string): boolean =>
  lstatSync(path, { throwIfNoEntry: false })?.uid === (me ?? Number.NaN);

/** Whether a path is a folder of this user's, not a link to one, in which nobody else can make or exchange anything. */
export function isOurFolder(path: string): boolean {
  const found = lstatSync(path, { throwIfNoEntry: false });
  return found !== undefined && found.isDirectory() && found.uid === me && (found.mode & 0o022) === 0;
}

/**
 * Why somebody else could exchange what this user keeps in a folder; undefined if nobody can. Root can anyway, and in a
 * folder like /tmp (its sticky bit is set) each only what is his own.
 */
export function sharingProblem(folder: string): string | undefined {
  const { uid, mode } = statSync(folder);
  const isShared = (mode & 0o022) !== 0 && (mode & 0o1000) === 0;
  const isTheirs = uid !== me && uid !== 0;
  if (!isShared && !isTheirs && lstatSync(folder).uid === uid) return undefined;
  return `owner ${uid}, mode ${(mode & 0o7777).toString(8)}`;
}
