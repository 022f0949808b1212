// SPDX-License-Identifier: Apache-2.0

/**
 * The gateway's SQLite database: sandboxes and workspaces as JSON under a unique (type, workspace, name),
 * and each sandbox's policy revisions. Every write raises a row's version; a write may demand the version it read.
 */
import { Database } from "bun:sqlite";
import { randomUUID } from "node:crypto";
import { chmodSync } from "node:fs";
import type { ObjectMeta__Output } from "../../proto/v0.0/types/openshell/datamodel/v1/ObjectMeta.ts";
import type { Workspace__Output } from "../../proto/v0.0/types/openshell/datamodel/v1/Workspace.ts";
import type { SandboxPolicy__Output } from "../../proto/v0.0/types/openshell/sandbox/v1/SandboxPolicy.ts";
import type { Sandbox__Output } from "../../proto/v0.0/types/openshell/v1/Sandbox.ts";
import type { SshSession__Output } from "../../proto/v0.0/types/openshell/v1/SshSession.ts";
import { Failure } from "./failure.ts";

const SCHEMA = `
  CREATE TABLE IF NOT EXISTS objects (
    type TEXT NOT NULL, id TEXT NOT NULL, name TEXT NOT NULL, workspace TEXT NOT NULL, labels TEXT NOT NULL,
    payload TEXT NOT NULL, version INTEGER NOT NULL, created_at_ms INTEGER NOT NULL, updated_at_ms INTEGER NOT NULL,
    PRIMARY KEY (type, id), UNIQUE (type, workspace, name)
  );
  CREATE TABLE IF NOT EXISTS policies (
    sandbox_id TEXT NOT NULL, version INTEGER NOT NULL, hash TEXT NOT NULL, policy TEXT NOT NULL, status TEXT NOT NULL,
    PRIMARY KEY (sandbox_id, version)
  );
`;

export class Store {
  readonly sandboxes: Objects<Sandbox__Output>;
  readonly workspaces: Objects<Workspace__Output>;
  readonly sshSessions: Objects<SshSession__Output>;
  readonly policies: Policies;
  #database: Database;

  /**
   * Opens the database of a "sqlite:" URL, or makes it.
   * @throws Failure with the real program's message
   */
  constructor(url: string) {
    this.#database = open(url);
    this.sandboxes = new Objects(this.#database, "sandbox");
    this.workspaces = new Objects(this.#database, "workspace");
    this.sshSessions = new Objects(this.#database, "ssh_session");
    this.policies = new Policies(this.#database);
    if (!this.workspaces.byName("", "default")) this.workspaces.insert(newWorkspace("default", {}));
  }

  /** Throws when the database does not answer. */
  ping(): void {
    this.#database.query("SELECT 1").get();
  }

  close(): void {
    this.#database.close();
  }
}

export function newWorkspace(name: string, labels: Record<string, string>): Workspace__Output {
  return {
    metadata: {
      id: randomUUID(),
      name,
      created_at_ms: String(Date.now()),
      labels,
      resource_version: "0",
      annotations: {},
      workspace: "",
      deletion_timestamp_ms: "0",
    },
    status: { phase: "WORKSPACE_PHASE_ACTIVE" },
  };
}

function open(url: string): Database {
  if (/^postgres(ql)?:\/\//.test(url)) throw Failure.notInThisFake("Postgres store");
  const [, path, query = ""] = /^sqlite:(?:\/\/)?([^?]*)(?:\?(.*))?$/.exec(url) ?? [];
  if (path === undefined) throw Failure.config(`unsupported database URL scheme: ${url}`);
  for (const parameter of new URLSearchParams(query).keys()) {
    if (["mode", "cache", "immutable", "vfs"].includes(parameter)) continue;
    throw Failure.execution(
      `database error: error with configuration: unknown query parameter \`${parameter}\` while parsing connection URL`,
    );
  }
  const file = /mode=memory/.test(query) ? ":memory:" : decodeURIComponent(path) || ":memory:";
  try {
    const database = new Database(file, { create: true });
    // Write-ahead log: a killed gateway finds all that it answered, without a disk flush a call.
    database.run("PRAGMA journal_mode = WAL");
    database.run("PRAGMA synchronous = OFF");
    database.run(SCHEMA);
    if (file !== ":memory:") chmodSync(file, 0o600);
    return database;
  } catch (error) {
    const { errno, message } = error as { errno?: number; message: string };
    throw Failure.execution(`database error: error returned from database: (code: ${errno ?? 1}) ${message}`);
  }
}

// Objects

interface Stored {
  metadata: ObjectMeta__Output | null;
}

interface Row {
  id: string;
  name: string;
  payload: string;
  version: number;
  created_at_ms: number;
  updated_at_ms: number;
}

/** One stored message, its metadata with the row's name and version. */
export interface Entry<Message> {
  message: Message;
  version: number;
  createdAtMs: number;
  updatedAtMs: number;
}

export interface Query {
  /** Left out: all workspaces. */
  workspace?: string;
  /** "key=value,key=value"; all must match. */
  selector?: string;
  limit: number;
  offset: number;
}

/** A name that is taken in its workspace. */
export class NameTaken extends Error {}

/** The messages of one type. */
export class Objects<Message extends Stored> {
  constructor(
    private readonly database: Database,
    private readonly type: string,
  ) {}

  /**
   * Stores a new message as version 1.
   * @throws NameTaken
   */
  insert(message: Message): Message {
    const { id, name, workspace, labels } = message.metadata!;
    const now = Date.now();
    try {
      this.database
        .query(
          `INSERT INTO objects (type, id, name, workspace, labels, payload, version, created_at_ms, updated_at_ms)
           VALUES (?1, ?2, ?3, ?4, ?5, ?6, 1, ?7, ?7)`,
        )
        .run(this.type, id, name, workspace, JSON.stringify(labels), JSON.stringify(message), now);
    } catch (error) {
      if (/UNIQUE constraint/.test(String(error)))
        throw new NameTaken(`${this.type} '${name}' already exists`);
      throw error;
    }
    return { ...message, metadata: { ...message.metadata!, resource_version: "1" } };
  }

  get = (id: string): Message | undefined => this.entry(id)?.message;

  entry(id: string): Entry<Message> | undefined {
    const row = this.database.query("SELECT * FROM objects WHERE type = ?1 AND id = ?2").get(this.type, id);
    return row ? read<Message>(row as Row) : undefined;
  }

  byName(workspace: string, name: string): Message | undefined {
    const row = this.database
      .query("SELECT * FROM objects WHERE type = ?1 AND workspace = ?2 AND name = ?3")
      .get(this.type, workspace, name);
    return row ? read<Message>(row as Row).message : undefined;
  }

  /** Oldest first. */
  list({ workspace, selector = "", limit, offset }: Query): Message[] {
    const conditions = ["type = ?"];
    const values: (string | number)[] = [this.type];
    if (workspace !== undefined) {
      conditions.push("workspace = ?");
      values.push(workspace);
    }
    for (const pair of selector.split(",").filter((text) => text.trim())) {
      const [key = "", value = ""] = pair.split("=", 2).map((text) => text.trim());
      conditions.push("json_extract(labels, ?) = ?");
      values.push(`$."${key}"`, value);
    }
    const rows = this.database
      .query(
        `SELECT * FROM objects WHERE ${conditions.join(" AND ")}
         ORDER BY created_at_ms, name, workspace, id LIMIT ? OFFSET ?`,
      )
      .all(...values, limit, offset);
    return (rows as Row[]).map((row) => read<Message>(row).message);
  }

  ids(): string[] {
    const rows = this.database
      .query("SELECT id FROM objects WHERE type = ? ORDER BY created_at_ms, name")
      .all(this.type);
    return (rows as { id: string }[]).map(({ id }) => id);
  }

  /**
   * Lets `change` edit the message in place and stores it.
   * @param expected the version that must still be there; left out, any will do
   * @returns the message as stored, or undefined when the row is gone or has another version
   */
  update(id: string, change: (message: Message) => Message | void, expected?: string): Message | undefined {
    const entry = this.entry(id);
    if (!entry || (expected !== undefined && String(entry.version) !== expected)) return undefined;
    const message = change(entry.message) ?? entry.message;
    const version = entry.version + 1;
    this.database
      .query("UPDATE objects SET payload = ?3, version = ?4, updated_at_ms = ?5 WHERE type = ?1 AND id = ?2")
      .run(this.type, id, JSON.stringify(message), version, Date.now());
    return { ...message, metadata: { ...message.metadata!, resource_version: String(version) } };
  }

  /** Whether a row was there, with the expected version if one is given. */
  delete(id: string, expected?: string): boolean {
    const entry = this.entry(id);
    if (!entry || (expected !== undefined && String(entry.version) !== expected)) return false;
    this.database.query("DELETE FROM objects WHERE type = ?1 AND id = ?2").run(this.type, id);
    return true;
  }
}

function read<Message extends Stored>(row: Row): Entry<Message> {
  const message = JSON.parse(row.payload) as Message;
  Object.assign(message.metadata!, { name: row.name, resource_version: String(row.version) });
  return { message, version: row.version, createdAtMs: row.created_at_ms, updatedAtMs: row.updated_at_ms };
}

// Policies

export interface PolicyRevision {
  version: number;
  hash: string;
  policy: SandboxPolicy__Output;
}

/** The policies that each sandbox has had. */
export class Policies {
  constructor(private readonly database: Database) {}

  latest(sandboxId: string): PolicyRevision | undefined {
    const row = this.database
      .query("SELECT version, hash, policy FROM policies WHERE sandbox_id = ? ORDER BY version DESC LIMIT 1")
      .get(sandboxId) as { version: number; hash: string; policy: string } | null;
    return row ? { ...row, policy: JSON.parse(row.policy) as SandboxPolicy__Output } : undefined;
  }

  /** Stores a policy as the next revision, unless it is the latest already. */
  add(sandboxId: string, policy: SandboxPolicy__Output): PolicyRevision {
    const text = JSON.stringify(policy);
    const hash = new Bun.CryptoHasher("sha256").update(text).digest("hex");
    const latest = this.latest(sandboxId);
    if (latest?.hash === hash) return latest;
    const version = (latest?.version ?? 0) + 1;
    this.database
      .query(
        "INSERT INTO policies (sandbox_id, version, hash, policy, status) VALUES (?, ?, ?, ?, 'pending')",
      )
      .run(sandboxId, version, hash, text);
    return { version, hash, policy };
  }

  /** Whether there is such a revision. */
  setStatus(sandboxId: string, version: number, status: "loaded" | "failed"): boolean {
    const { changes } = this.database
      .query("UPDATE policies SET status = ?3 WHERE sandbox_id = ?1 AND version = ?2")
      .run(sandboxId, version, status);
    return changes > 0;
  }

  forget(sandboxId: string): void {
    this.database.query("DELETE FROM policies WHERE sandbox_id = ?").run(sandboxId);
  }
}
