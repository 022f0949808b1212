// SPDX-License-Identifier: Apache-2.0

/**
 * What the supervisor was told to do: flags, then environment variables, by the names of the real program. It loads
 * nothing heavy, for the entry reads it before everything else.
 */
import { existsSync } from "node:fs";
import { join } from "node:path";

export const USAGE = `Usage: openshell-sandbox [--workdir DIR] [--log-level LEVEL] [--interactive] [COMMAND]...

The sandbox, its gateway, token, main process and user environment come from OPENSHELL_SANDBOX_ID, OPENSHELL_ENDPOINT,
OPENSHELL_SANDBOX_TOKEN_FILE, OPENSHELL_MAIN_PROCESS_SPEC and OPENSHELL_USER_ENVIRONMENT, TLS files from
OPENSHELL_TLS_CA, _CERT and _KEY.`;

export interface Settings {
  sandboxId: string;
  endpoint: string;
  serverName: string;
  tls: { ca: string; cert: string; key: string };
  token: string;
  tokenFile: string;
  workdir: string;
  main: { command: string[]; tty: boolean };
  /** The user's environment, from the template and the request. */
  userEnvironment: Record<string, string>;
  imageUser: string;
  logLevel: string;
  /** The folder that stands for `/`, or "" in a container. */
  root: string;
  hosts: Map<string, string>;
}

export const words = (text: string) => text.trim().split(/\s+/);

/** Flags of the real program. Those that steer isolation are accepted and mean nothing here. */
const VALUE_FLAGS = words(`
  workdir timeout sandbox-id sandbox openshell-endpoint policy-rules policy-data log-level ssh-socket-path
  inference-routes health-port mode proxy-uid proxy-gid sidecar-state-dir sidecar-tls-dir upstream-proxy
  upstream-no-proxy upstream-proxy-auth-file`);
const SWITCHES = words(`
  interactive health-check upstream-proxy-auth-allow-insecure upstream-proxy-connect-by-hostname version help`);
const SHORT: Record<string, string> = {
  w: "workdir",
  t: "timeout",
  i: "interactive",
  V: "version",
  h: "help",
};

/** A mistake of the caller: one line on stderr, exit code 2. */
export class UsageError extends Error {}

export function readFlags(argv: string[]): { flags: Map<string, string>; command: string[] } {
  const flags = new Map<string, string>();
  for (let i = 0; i < argv.length; i++) {
    const arg = argv[i]!;
    if (arg === "--") return { flags, command: argv.slice(i + 1) };
    if (!arg.startsWith("-")) return { flags, command: argv.slice(i) };
    const [, dashes, given = "", , inline] = /^(--?)([^=]*)(=(.*))?$/s.exec(arg) ?? [];
    const name = dashes === "-" ? (SHORT[given] ?? given) : given;
    if (SWITCHES.includes(name) && inline === undefined) flags.set(name, "true");
    else if (!VALUE_FLAGS.includes(name)) throw new UsageError(`unexpected argument '${arg}'`);
    else {
      const value = inline ?? argv[++i];
      if (value === undefined) throw new UsageError(`a value is required for '${arg}'`);
      flags.set(name, value);
    }
  }
  return { flags, command: [] };
}

export function readSettings(
  flags: Map<string, string>,
  command: string[],
  env: NodeJS.ProcessEnv,
): Settings {
  const setting = (flag: string, variable: string) => flags.get(flag) ?? env[variable] ?? "";
  const settings: Settings = {
    sandboxId: setting("sandbox-id", "OPENSHELL_SANDBOX_ID"),
    endpoint: setting("openshell-endpoint", "OPENSHELL_ENDPOINT"),
    serverName: env.OPENSHELL_GATEWAY_TLS_SERVER_NAME ?? "",
    tls: {
      ca: env.OPENSHELL_TLS_CA ?? "",
      cert: env.OPENSHELL_TLS_CERT ?? "",
      key: env.OPENSHELL_TLS_KEY ?? "",
    },
    token: env.OPENSHELL_SANDBOX_TOKEN ?? "",
    tokenFile: env.OPENSHELL_SANDBOX_TOKEN_FILE ?? "",
    workdir: flags.get("workdir") ?? "/sandbox",
    main: command.length
      ? { command, tty: flags.has("interactive") }
      : readMainProcess(env.OPENSHELL_MAIN_PROCESS_SPEC),
    userEnvironment: readUserEnvironment(env.OPENSHELL_USER_ENVIRONMENT),
    imageUser: env.OPENSHELL_OCI_IMAGE_USER ?? "",
    logLevel: setting("log-level", "OPENSHELL_LOG_LEVEL") || "warn",
    root: env.OPENSHELL_FAKE_ROOT ?? "",
    hosts: new Map(
      (env.OPENSHELL_FAKE_HOSTS ?? "")
        .split(",")
        .filter(Boolean)
        .map((entry) => entry.split("=", 2) as [string, string]),
    ),
  };
  if (!settings.sandboxId) throw new UsageError("OPENSHELL_SANDBOX_ID is not set");
  if (!URL.canParse(settings.endpoint) || !/^https?:$/.test(new URL(settings.endpoint).protocol)) {
    throw new UsageError(
      `OPENSHELL_ENDPOINT must be http://host:port or https://host:port, got '${settings.endpoint}'`,
    );
  }
  if (!settings.token && !settings.tokenFile) throw new UsageError("OPENSHELL_SANDBOX_TOKEN_FILE is not set");
  return settings;
}

/** The main process as the driver names it: JSON, or the same as base64url behind a prefix. */
function readMainProcess(spec = ""): Settings["main"] {
  if (!spec) return { command: [shell(), "-l"], tty: true };
  const encoded = /^base64url:(.*)$/s.exec(spec)?.[1];
  const json = encoded === undefined ? spec : Buffer.from(encoded, "base64url").toString();
  let main: { version?: unknown; command?: unknown; tty?: unknown };
  try {
    main = JSON.parse(json);
  } catch (error) {
    throw new UsageError(`OPENSHELL_MAIN_PROCESS_SPEC is not JSON: ${String(error)}`);
  }
  const { version, command, tty } = main;
  if (version !== 1)
    throw new UsageError(`OPENSHELL_MAIN_PROCESS_SPEC has version ${String(version)}, expected 1`);
  if (!Array.isArray(command) || !command[0] || command.some((arg) => typeof arg !== "string")) {
    throw new UsageError("OPENSHELL_MAIN_PROCESS_SPEC has no command");
  }
  return { command, tty: tty === true };
}

function readUserEnvironment(json = "{}"): Record<string, string> {
  try {
    return JSON.parse(json);
  } catch {
    return {};
  }
}

/** A container's absolute path as a path of this process. */
export const rooted = (settings: Settings, path: string) =>
  settings.root ? join(settings.root, path) : path;

/** The shell of commands, and of a main process that nobody named. */
export const shell = () => (existsSync("/bin/bash") ? "/bin/bash" : "/bin/sh");
