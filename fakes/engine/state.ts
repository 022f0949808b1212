// SPDX-License-Identifier: Apache-2.0

/** State on disk, one folder for all: whatever the engine answers with survives its own death. */
import {
  chmodSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";

export class State {
  constructor(readonly root: string) {
    for (const kind of ["", "containers", "images", "secrets", "volumes"]) {
      mkdirSync(this.path(kind), { recursive: true });
    }
    chmodSync(root, 0o700);
  }

  path(...parts: string[]): string {
    return join(this.root, ...parts);
  }

  collection<Item>(kind: string): Collection<Item> {
    return new Collection(this.path(`${kind}.json`));
  }
}

/** Named things in one JSON file. */
export class Collection<Item> extends Map<string, Item> {
  readonly #file: string;

  constructor(file: string) {
    super(existsSync(file) ? (JSON.parse(readFileSync(file, "utf8")) as [string, Item][]) : []);
    this.#file = file;
  }

  save(): void {
    writeAtomically(this.#file, JSON.stringify([...this]));
  }
}

export function writeAtomically(file: string, content: string): void {
  writeFileSync(`${file}.new`, content);
  renameSync(`${file}.new`, file);
}

/** Removes a tree, folders without write permission included. */
export function removeTree(path: string): void {
  try {
    rmSync(path, { recursive: true, force: true });
  } catch {
    openFolders(path);
    rmSync(path, { recursive: true, force: true });
  }
}

function openFolders(folder: string): void {
  chmodSync(folder, 0o700);
  for (const entry of readdirSync(folder, { withFileTypes: true })) {
    if (entry.isDirectory()) openFolders(join(folder, entry.name));
  }
}

/** An id of `length` hexadecimal digits. */
export const randomHex = (length: number): string =>
  crypto
    .getRandomValues(Buffer.alloc(Math.ceil(length / 2)))
    .toString("hex")
    .slice(0, length);
