// SPDX-License-Identifier: Apache-2.0

/** Removing what programs under test have made: folders that they took all rights to, names that are no text. */
import { chmodSync, lstatSync, readdirSync, rmSync } from "node:fs";

/** A file may be made beside the removal by a program that is just ending. */
const AGAIN = { maxRetries: 4, retryDelay: 20 };

/**
 * Removes a file or a folder with all that is in it, if it is there. A folder that its own user may not write to, such as
 * those of Go's module cache, is made writable first. Links are removed, never followed.
 * @throws Error when something of it is another user's, or still at work.
 */
export function removeTree(path: string): void {
  try {
    rmSync(path, { recursive: true, force: true, ...AGAIN });
  } catch {
    makeWritable(path);
    rmSync(path, { recursive: true, force: true, ...AGAIN });
  }
}

/** Names as bytes: not every one is text. */
function makeWritable(path: string | Buffer): void {
  if (!lstatSync(path, { throwIfNoEntry: false })?.isDirectory()) return;
  try {
    chmodSync(path, 0o700);
    for (const name of readdirSync(path, { encoding: "buffer" }))
      makeWritable(Buffer.concat([Buffer.from(path), SLASH, name]));
  } catch {
    // Another user's, or gone: the removal says what stays, and why.
  }
}

const SLASH = Buffer.from("/");
