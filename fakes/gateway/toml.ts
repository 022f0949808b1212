// SPDX-License-Identifier: Apache-2.0

/**
 * The gateway's TOML file, checked as strictly as the real program checks it: every key known, every value of its type,
 * and a message that shows the line. Only `[openshell.drivers.*]` and `[openshell.credential_drivers.*]` are free.
 */
import { readFileSync } from "node:fs";
import { isIP } from "node:net";
import { parse, TomlError, type TomlTable, type TomlValue } from "smol-toml";
import { Failure, osError } from "./failure.ts";

// Schema

type Scalar = "string" | "bool" | "integer" | "address" | "path" | "strings" | "table" | "tables";
interface Table {
  /** The name by which the real program's messages call the table. */
  name: string;
  keys: Record<string, Scalar | Table>;
  required?: string[];
}

const GATEWAY: Table = {
  name: "GatewayFileSection",
  keys: {
    bind_address: "address",
    health_bind_address: "address",
    metrics_bind_address: "address",
    log_level: "string",
    compute_drivers: "strings",
    credential_drivers: "strings",
    default_credential_driver: "string",
    credential_storage: "table",
    sandbox_namespace: "string",
    ssh_session_ttl_secs: "integer",
    grpc_rate_limit_requests: "integer",
    grpc_rate_limit_window_seconds: "integer",
    policy_validation_failure_mode: "string",
    server_sans: "strings",
    enable_loopback_service_http: "bool",
    default_image: "string",
    supervisor_image: "string",
    client_tls_secret_name: "string",
    service_account_name: "string",
    host_gateway_ip: "string",
    enable_user_namespaces: "bool",
    sa_token_ttl_secs: "integer",
    guest_tls_ca: "path",
    guest_tls_cert: "path",
    guest_tls_key: "path",
    disable_tls: "bool",
    tls: {
      name: "TlsConfig",
      keys: {
        cert_path: "path",
        key_path: "path",
        client_ca_path: "path",
        require_client_auth: "bool",
        external_cert_path: "path",
        external_key_path: "path",
        external_server_names: "strings",
      },
      required: ["cert_path", "key_path"],
    },
    oidc: "table",
    auth: { name: "GatewayAuthConfig", keys: { allow_unauthenticated_users: "bool" } },
    interceptors: "tables",
    provider_profile_sources: "tables",
    mtls_auth: { name: "MtlsAuthConfig", keys: { enabled: "bool" } },
    gateway_jwt: {
      name: "GatewayJwtConfig",
      keys: {
        signing_key_path: "path",
        public_key_path: "path",
        kid_path: "path",
        gateway_id: "string",
        ttl_secs: "integer",
      },
      required: ["signing_key_path", "public_key_path", "kid_path"],
    },
    otlp: {
      name: "OtlpConfig",
      keys: { endpoint: "string", service_name: "string" },
      required: ["endpoint"],
    },
    database_url: "string",
  },
};

const FILE: Table = {
  name: "ConfigFile",
  keys: {
    openshell: {
      name: "OpenShellRoot",
      keys: {
        version: "integer",
        gateway: GATEWAY,
        supervisor: { name: "SupervisorFileSection", keys: { middleware: "tables" } },
        drivers: "table",
        credential_drivers: "table",
      },
    },
  },
};

/** `[openshell.gateway]`, as far as this gateway reads it. */
export interface GatewaySection {
  ssh_session_ttl_secs?: number;
  bind_address?: string;
  health_bind_address?: string;
  metrics_bind_address?: string;
  log_level?: string;
  compute_drivers?: string[];
  credential_drivers?: string[];
  grpc_rate_limit_requests?: number;
  grpc_rate_limit_window_seconds?: number;
  disable_tls?: boolean;
  tls?: { cert_path: string; key_path: string; client_ca_path?: string; external_cert_path?: string };
  oidc?: TomlTable;
  auth?: { allow_unauthenticated_users?: boolean };
  interceptors?: TomlTable[];
  provider_profile_sources?: TomlTable[];
  mtls_auth?: { enabled?: boolean };
  gateway_jwt?: {
    signing_key_path: string;
    public_key_path: string;
    kid_path: string;
    gateway_id?: string;
    ttl_secs?: number;
  };
  database_url?: string;
}

export interface ConfigFile {
  gateway: GatewaySection;
  drivers: Record<string, TomlTable>;
  middleware: TomlTable[];
}

// Reading

/**
 * Reads a configuration file.
 * @throws Failure with the real program's message when it cannot be read, parsed or accepted
 */
export function loadConfigFile(path: string): ConfigFile {
  let text: string;
  try {
    text = readFileSync(path, "utf8");
  } catch (error) {
    throw new Failure(`failed to read gateway config file '${path}': ${osError(error)}`);
  }
  let file: TomlTable;
  try {
    file = parse(text);
    check(file, FILE, [], new Source(text));
  } catch (error) {
    const cause = error instanceof TomlError ? asComplaint(error, text) : error;
    if (cause instanceof Complaint) {
      throw new Failure(`failed to parse gateway config file '${path}': ${cause.message}`);
    }
    throw error;
  }
  const root = (file.openshell ?? {}) as {
    version?: number;
    gateway?: GatewaySection;
    drivers?: Record<string, TomlTable>;
    supervisor?: { middleware?: TomlTable[] };
  };
  if ((root.version ?? 0) > 1) {
    throw new Failure(
      `unsupported gateway config version ${root.version}; this build only supports version 1`,
    );
  }
  if (root.gateway?.database_url !== undefined) {
    throw new Failure(
      "`database_url` is not allowed in the gateway config file — set the OPENSHELL_DB_URL env var or pass --db-url on the command line",
    );
  }
  if (root.gateway?.credential_drivers?.length === 0) {
    throw new Failure(
      "invalid gateway config field `openshell.gateway.credential_drivers`: omit the field to use default encrypted gateway credential storage, or specify exactly one external credential driver",
    );
  }
  return {
    gateway: root.gateway ?? {},
    drivers: root.drivers ?? {},
    middleware: root.supervisor?.middleware ?? [],
  };
}

// Checking

function check(table: TomlTable, schema: Table, path: string[], source: Source): void {
  for (const [key, value] of Object.entries(table)) {
    const expected = schema.keys[key];
    const here = [...path, key];
    if (expected === undefined) {
      throw source.complaint(
        source.key(here),
        `unknown field \`${key}\`, expected ${oneOf(Object.keys(schema.keys))}`,
      );
    }
    if (typeof expected === "object") {
      if (!isTable(value)) throw mistyped(value, `struct ${expected.name}`, here, source);
      check(value, expected, here, source);
    } else {
      checkValue(value, expected, here, source);
    }
  }
  for (const key of schema.required ?? []) {
    if (!(key in table)) throw source.complaint(source.header(path), `missing field \`${key}\``);
  }
}

function checkValue(value: TomlValue, expected: Scalar, path: string[], source: Source): void {
  const must = (holds: boolean, phrase: string) => {
    if (!holds) throw mistyped(value, phrase, path, source);
  };
  if (expected === "string") must(typeof value === "string", "a string");
  else if (expected === "path") must(typeof value === "string", "path string");
  else if (expected === "bool") must(typeof value === "boolean", "a boolean");
  else if (expected === "integer") must(Number.isInteger(value), "u64");
  else if (expected === "table") must(isTable(value), "a map");
  else if (expected === "address") {
    must(typeof value === "string", "socket address");
    if (!parseAddress(value as string)) {
      throw source.complaint(source.value(path), "invalid socket address syntax");
    }
  } else {
    must(Array.isArray(value), "a sequence");
    for (const item of value as TomlValue[]) {
      if (expected === "strings" && typeof item !== "string") throw mistyped(item, "a string", path, source);
      if (expected === "tables" && !isTable(item)) throw mistyped(item, "a map", path, source);
    }
  }
}

const isTable = (value: TomlValue | undefined): value is TomlTable =>
  typeof value === "object" && !Array.isArray(value) && !(value instanceof Date);

function mistyped(value: TomlValue, expected: string, path: string[], source: Source): Complaint {
  const found =
    typeof value === "string"
      ? `string ${JSON.stringify(value)}`
      : typeof value === "boolean"
        ? `boolean \`${value}\``
        : typeof value === "number" || typeof value === "bigint"
          ? `${Number.isInteger(Number(value)) ? "integer" : "floating point"} \`${value}\``
          : Array.isArray(value)
            ? "sequence"
            : "map";
  return source.complaint(source.value(path), `invalid type: ${found}, expected ${expected}`);
}

function oneOf(names: string[]): string {
  const quoted = names.map((name) => `\`${name}\``);
  return quoted.length > 2 ? `one of ${quoted.join(", ")}` : quoted.join(" or ");
}

/** The two halves of "127.0.0.1:80" or "[::1]:80", or undefined when it is neither. */
export function parseAddress(text: string): { host: string; port: number } | undefined {
  const [, v6, v4, digits] = /^(?:\[([^\]]+)\]|([^:]+)):(\d{1,5})$/.exec(text) ?? [];
  const host = v6 ?? v4 ?? "";
  const port = Number(digits);
  return isIP(host) === (v6 ? 6 : 4) && port < 65536 ? { host, port } : undefined;
}

// Where in the file

class Complaint extends Error {}

interface Span {
  line: number;
  column: number;
  length: number;
}

function asComplaint(error: TomlError, text: string): Complaint {
  const span = { line: error.line, column: error.column, length: 1 };
  const said = error.message.split("\n")[0]!.replace(/^Invalid TOML document: /, "");
  return new Source(text).complaint(span, said);
}

/** Finds keys and values in the text, since the parser keeps no positions. */
class Source {
  #lines: string[];

  constructor(text: string) {
    this.#lines = text.split("\n");
  }

  complaint({ line, column, length }: Span, message: string): Complaint {
    const gutter = " ".repeat(String(line).length);
    return new Complaint(
      `TOML parse error at line ${line}, column ${column}\n${gutter} |\n` +
        `${line} | ${this.#lines[line - 1] ?? ""}\n${gutter} | ${" ".repeat(column - 1)}${"^".repeat(length)}\n${message}\n`,
    );
  }

  /** The key at the end of `path`, in an assignment or in a table's header. */
  key(path: string[]): Span {
    const name = path.at(-1)!;
    const found = this.#assignment(path) ?? this.header(path);
    return { ...found, column: found.column + this.#text(found).indexOf(name), length: name.length };
  }

  value(path: string[]): Span {
    const found = this.#assignment(path);
    if (!found) return this.header(path);
    const text = this.#text(found);
    const start = text.indexOf("=") + 1 + /^\s*/.exec(text.slice(text.indexOf("=") + 1))![0].length;
    const value = text.slice(start).replace(/\s*(#.*)?$/, "");
    return { line: found.line, column: found.column + start, length: Math.max(1, value.length) };
  }

  header(path: string[]): Span {
    for (const [index, line] of this.#lines.entries()) {
      const names = tableName(line);
      if (names && path.every((name, depth) => names[depth] === name)) {
        const text = line.trim();
        return { line: index + 1, column: line.indexOf(text) + 1, length: text.length };
      }
    }
    return { line: 1, column: 1, length: 1 };
  }

  #assignment(path: string[]): Span | undefined {
    let table: string[] = [];
    for (const [index, line] of this.#lines.entries()) {
      table = tableName(line) ?? table;
      const key = /^\s*([\w."'-]+)\s*=/.exec(line)?.[1];
      if (key && [...table, ...names(key)].join("\0") === path.join("\0")) {
        return { line: index + 1, column: 1, length: line.length };
      }
    }
    return undefined;
  }

  #text = (span: Span) => this.#lines[span.line - 1]!.slice(span.column - 1);
}

const names = (dotted: string) => dotted.split(".").map((name) => name.trim().replace(/^["']|["']$/g, ""));
const tableName = (line: string) => {
  const header = /^\s*\[\[?([^\]]+)\]\]?/.exec(line)?.[1];
  return header === undefined ? undefined : names(header);
};
