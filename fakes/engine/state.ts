// SPDX-License-Identifier: Apache-2.0

/** State on disk, one folder for all: whatever the engine answers with survives its own death. */
import { Database } from "bun:sqlite";
import { chmodSync, mkdirSync, readdirSync, rmSync } from "node:fs";
import { join } from "node:path";

/**
 * What was written is there when the process is killed; nothing here is to survive the machine's own end. To replace a
 * file for each of a container's dozen changes of state was the largest part of the engine's work.
 */
const SCHEMA = `
  PRAGMA journal_mode = WAL;
  PRAGMA synchronous = OFF;
  PRAGMA busy_timeout = 5000;
  CREATE TABLE IF NOT EXISTS items (
    kind TEXT NOT NULL, name TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (kind, name)
  );
`;

/** The order of rows stays that of the first time that each was set. */
const UPSERT = `
  INSERT INTO items (kind, name, value) VALUES (?, ?, ?)
  ON CONFLICT (kind, name) DO UPDATE SET value = excluded.value`;

export class State {
  readonly #database: Database;

  constructor(readonly root: string) {
    for (const kind of ["", "containers", "images", "secrets", "volumes"]) {
      mkdirSync(this.path(kind), { recursive: true });
    }
    chmodSync(root, 0o700);
    this.#database = new Database(this.path("state.db"));
    this.#database.run(SCHEMA);
  }

  path(...parts: string[]): string {
    return join(this.root, ...parts);
  }

  collection<Item>(kind: string): Collection<Item> {
    return new Collection(this.#database, kind);
  }
}

/** Named things of one kind. What is set is on disk; an item that is changed is to be set again. */
export class Collection<Item> extends Map<string, Item> {
  readonly #insert;
  readonly #delete;

  constructor(
    database: Database,
    readonly kind: string,
  ) {
    super();
    this.#insert = database.query(UPSERT);
    this.#delete = database.query("DELETE FROM items WHERE kind = ? AND name = ?");
    const rows = database.query<{ name: string; value: string }, [string]>(
      "SELECT name, value FROM items WHERE kind = ? ORDER BY rowid",
    );
    for (const { name, value } of rows.all(kind)) super.set(name, JSON.parse(value) as Item);
  }

  override set(name: string, item: Item): this {
    this.#insert.run(this.kind, name, JSON.stringify(item));
    return super.set(name, item);
  }

  override delete(name: string): boolean {
    this.#delete.run(this.kind, name);
    return super.delete(name);
  }
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
