// SPDX-License-Identifier: Apache-2.0

/**
 * A compute driver for Podman: the flags, environment, socket, messages and containers of `openshell-driver-podman`,
 * written against the contract. It talks to any engine that serves libpod REST v4.0.0: Podman 4.3, Podman 5,
 * fakes/engine.ts.
 *
 *   bun fakes/driver.ts --bind-socket /run/me/driver.sock --podman-socket /run/podman/podman.sock
 *
 * It is correct where the first-party driver is known not to be: a second create of a sandbox is ALREADY_EXISTS and
 * does no harm, a container that vanishes takes its volume and secrets along, a failed create leaves nothing, a paused
 * container is really stopped, a watch has no limit of containers, and SIGTERM ends it although a watch is open. It
 * sees the sandboxes of its own network only, so that drivers can share an engine.
 */
import {
  chmodSync,
  closeSync,
  constants,
  existsSync,
  fstatSync,
  lstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  readSync,
  renameSync,
  unlinkSync,
} from "node:fs";
import { isIP } from "node:net";
import { dirname, join, resolve } from "node:path";
import type { ServerUnaryCall, ServerWritableStream, ServiceError, sendUnaryData } from "@grpc/grpc-js";
import type { ComputeDriverHandlers } from "../proto/v0.0/types/openshell/compute/v1/ComputeDriver.ts";
import type { DriverCondition } from "../proto/v0.0/types/openshell/compute/v1/DriverCondition.ts";
import type { DriverResourceRequirements__Output as Resources } from "../proto/v0.0/types/openshell/compute/v1/DriverResourceRequirements.ts";
import type {
  DriverSandbox,
  DriverSandbox__Output as Sandbox,
} from "../proto/v0.0/types/openshell/compute/v1/DriverSandbox.ts";
import type { GatewayListenerRequirement } from "../proto/v0.0/types/openshell/compute/v1/GatewayListenerRequirement.ts";
import type { WatchSandboxesEvent } from "../proto/v0.0/types/openshell/compute/v1/WatchSandboxesEvent.ts";
import type { WatchSandboxesRequest__Output as WatchRequest } from "../proto/v0.0/types/openshell/compute/v1/WatchSandboxesRequest.ts";
import type { Struct__Output as Struct } from "../proto/v0.0/types/google/protobuf/Struct.ts";
import type { Value__Output as Value } from "../proto/v0.0/types/google/protobuf/Value.ts";

const VERSION = "0.0.112+fake";

// ---------------------------------------------------------------------------------------------------------------
// Settings
// ---------------------------------------------------------------------------------------------------------------

type Kind =
  "text" | "list" | "switch" | "yes-no" | "port" | "seconds" | "integer" | "pull-policy" | "address";

interface Flag {
  name: string;
  env?: string;
  kind?: Kind;
  default?: string;
}

/** Every flag of the first-party driver, in its order. */
const FLAGS: Flag[] = [
  { name: "bind-socket", env: "OPENSHELL_COMPUTE_DRIVER_SOCKET" },
  { name: "bind-address", env: "OPENSHELL_COMPUTE_DRIVER_BIND", kind: "address", default: "127.0.0.1:50061" },
  { name: "log-level", env: "OPENSHELL_LOG_LEVEL", default: "info" },
  { name: "otlp-endpoint", env: "OPENSHELL_OTLP_ENDPOINT" },
  { name: "podman-socket", env: "OPENSHELL_PODMAN_SOCKET" },
  { name: "sandbox-image", env: "OPENSHELL_SANDBOX_IMAGE" },
  {
    name: "sandbox-image-pull-policy",
    env: "OPENSHELL_SANDBOX_IMAGE_PULL_POLICY",
    kind: "pull-policy",
    default: "missing",
  },
  { name: "grpc-endpoint", env: "OPENSHELL_GRPC_ENDPOINT" },
  { name: "gateway-port", env: "OPENSHELL_GATEWAY_PORT", kind: "port", default: "17670" },
  { name: "host-gateway-ip", env: "OPENSHELL_PODMAN_HOST_GATEWAY_IP" },
  {
    name: "sandbox-ssh-socket-path",
    env: "OPENSHELL_SANDBOX_SSH_SOCKET_PATH",
    default: "/run/openshell/ssh.sock",
  },
  { name: "network-name", env: "OPENSHELL_NETWORK_NAME", default: "openshell" },
  { name: "stop-timeout", env: "OPENSHELL_STOP_TIMEOUT", kind: "seconds", default: "45" },
  { name: "sandbox-pids-limit", env: "OPENSHELL_SANDBOX_PIDS_LIMIT", kind: "integer", default: "2048" },
  {
    name: "supervisor-image",
    env: "OPENSHELL_SUPERVISOR_IMAGE",
    default: "ghcr.io/nvidia/openshell/supervisor:dev",
  },
  { name: "podman-tls-ca", env: "OPENSHELL_PODMAN_TLS_CA" },
  { name: "podman-tls-cert", env: "OPENSHELL_PODMAN_TLS_CERT" },
  { name: "podman-tls-key", env: "OPENSHELL_PODMAN_TLS_KEY" },
  { name: "sandbox-https-proxy", env: "OPENSHELL_SANDBOX_HTTPS_PROXY" },
  { name: "sandbox-no-proxy", env: "OPENSHELL_SANDBOX_NO_PROXY" },
  { name: "sandbox-proxy-auth-file", env: "OPENSHELL_SANDBOX_PROXY_AUTH_FILE" },
  {
    name: "sandbox-proxy-auth-allow-insecure",
    env: "OPENSHELL_SANDBOX_PROXY_AUTH_ALLOW_INSECURE",
    kind: "yes-no",
  },
  {
    name: "sandbox-proxy-connect-by-hostname",
    env: "OPENSHELL_SANDBOX_PROXY_CONNECT_BY_HOSTNAME",
    kind: "yes-no",
  },
  { name: "userns", env: "OPENSHELL_PODMAN_USERNS" },
  { name: "uidmap", kind: "list" },
  { name: "gidmap", kind: "list" },
  { name: "enable-bind-mounts", env: "OPENSHELL_ENABLE_BIND_MOUNTS", kind: "switch" },
];

interface Settings {
  bindSocket?: string;
  bindAddress: string;
  logLevel: string;
  podmanSocket?: string;
  sandboxImage: string;
  pullPolicy: string;
  grpcEndpoint: string;
  gatewayPort: number;
  hostGatewayIp: string;
  sshSocketPath: string;
  networkName: string;
  /** Seconds between SIGTERM and SIGKILL. */
  stopTimeout: number;
  pidsLimit: number;
  supervisorImage: string;
  tls?: { ca: string; cert: string; key: string };
  httpsProxy?: string;
  noProxy?: string;
  proxyAuthFile?: string;
  proxyAuthAllowInsecure: boolean;
  proxyConnectByHostname: boolean;
  enableBindMounts: boolean;
}

/** A reason not to start, said to the operator in one line. */
class StartError extends Error {
  constructor(
    message: string,
    readonly exitCode: 1 | 2 = 1,
  ) {
    super(message);
  }
}

const CHECKS: Partial<Record<Kind, { valid: (value: string) => boolean; expected: string }>> = {
  port: { valid: (value) => /^\d+$/.test(value) && Number(value) <= 65_535, expected: "a port number" },
  seconds: {
    valid: (value) => /^\d+$/.test(value) && Number(value) < 2 ** 32,
    expected: "a number of seconds",
  },
  integer: { valid: (value) => /^-?\d+$/.test(value), expected: "an integer" },
  "yes-no": { valid: (value) => value === "true" || value === "false", expected: "true or false" },
  address: {
    valid: (value) => /^(\d+\.\d+\.\d+\.\d+|\[[0-9a-fA-F:]+\]):\d+$/.test(value),
    expected: "ADDRESS:PORT",
  },
  "pull-policy": {
    valid: (value) => ["always", "missing", "never", "newer"].includes(value.toLowerCase()),
    expected: "one of: always, missing, never, newer",
  },
};

/**
 * Flags first, then environment, then defaults.
 * @throws StartError with exit code 2 for an unknown or repeated flag and a malformed value, 1 for a contradiction.
 */
function readSettings(argv: string[], env: NodeJS.ProcessEnv): Settings {
  const given = new Map<string, string[]>();
  for (let i = 0; i < argv.length; i++) {
    const word = argv[i] as string;
    const [, name = "", inline] = /^--([a-z-]+)(?:=(.*))?$/s.exec(word) ?? [];
    const flag = FLAGS.find((candidate) => candidate.name === name);
    if (!flag) throw new StartError(`unexpected argument '${word}' found`, 2);
    const value = flag.kind === "switch" ? (inline ?? "true") : (inline ?? argv[++i]);
    if (value === undefined)
      throw new StartError(`a value is required for '--${name}' but none was supplied`, 2);
    if (given.has(name) && flag.kind !== "list") {
      throw new StartError(`the argument '--${name}' cannot be used multiple times`, 2);
    }
    given.set(name, [...(given.get(name) ?? []), value]);
  }
  for (const { name, env: variable, default: otherwise } of FLAGS) {
    const value = given.get(name)?.[0] ?? (variable ? env[variable] : undefined) ?? otherwise;
    if (value !== undefined && !given.has(name)) given.set(name, [value]);
  }
  for (const { name, kind = "text" } of FLAGS) {
    const check = CHECKS[kind];
    for (const value of given.get(name) ?? []) {
      if (check && !check.valid(value)) {
        throw new StartError(`invalid value '${value}' for '--${name}': expected ${check.expected}`, 2);
      }
    }
  }
  const text = (name: string): string | undefined => given.get(name)?.[0];
  const number = (name: string): number => Number(text(name));
  const settings: Settings = {
    bindSocket: text("bind-socket"),
    bindAddress: text("bind-address") ?? "",
    logLevel: text("log-level") ?? "info",
    podmanSocket: text("podman-socket"),
    sandboxImage: text("sandbox-image") ?? "",
    pullPolicy: (text("sandbox-image-pull-policy") ?? "missing").toLowerCase(),
    grpcEndpoint: text("grpc-endpoint") ?? "",
    gatewayPort: number("gateway-port"),
    // Podman machines on macOS answer on this address of gvproxy, whatever their version.
    hostGatewayIp: (
      text("host-gateway-ip") ?? (process.platform === "darwin" ? "192.168.127.254" : "")
    ).trim(),
    sshSocketPath: text("sandbox-ssh-socket-path") ?? "",
    networkName: text("network-name") ?? "",
    stopTimeout: number("stop-timeout"),
    pidsLimit: number("sandbox-pids-limit"),
    supervisorImage: text("supervisor-image") ?? "",
    tls: readTls(text),
    httpsProxy: text("sandbox-https-proxy"),
    noProxy: text("sandbox-no-proxy"),
    proxyAuthFile: text("sandbox-proxy-auth-file"),
    proxyAuthAllowInsecure: text("sandbox-proxy-auth-allow-insecure") === "true",
    proxyConnectByHostname: text("sandbox-proxy-connect-by-hostname") === "true",
    enableBindMounts: text("enable-bind-mounts") === "true" || text("enable-bind-mounts") === "1",
  };
  if (settings.pidsLimit < 0) invalid("sandbox_pids_limit must be zero or greater");
  if (settings.hostGatewayIp && isIP(settings.hostGatewayIp) === 0) {
    invalid(`invalid host_gateway_ip value '${settings.hostGatewayIp}': invalid IP address syntax`);
  }
  checkName(settings.networkName, (message) => invalid(message));
  checkProxy(settings, text);
  const userns = text("userns");
  if (userns !== undefined && userns.toLowerCase() !== "host") {
    invalid(`userns mode '${userns}' is not served by this driver; leave --userns out, or set 'host'`);
  }
  if (given.has("uidmap") || given.has("gidmap"))
    invalid(`uidmap/gidmap are only valid with userns = "private"`);
  return settings;
}

function invalid(message: string): never {
  throw new StartError(`invalid input: ${message}`);
}

function readTls(text: (name: string) => string | undefined): Settings["tls"] {
  const [ca, cert, key] = [text("podman-tls-ca"), text("podman-tls-cert"), text("podman-tls-key")];
  if (ca && cert && key) return { ca, cert, key };
  const missing = [
    !ca && "--podman-tls-ca / OPENSHELL_PODMAN_TLS_CA",
    !cert && "--podman-tls-cert / OPENSHELL_PODMAN_TLS_CERT",
    !key && "--podman-tls-key / OPENSHELL_PODMAN_TLS_KEY",
  ].filter(Boolean);
  if (missing.length === 3) return undefined;
  return invalid(
    `Partial TLS configuration: all three TLS paths must be provided together. Missing: ${missing.join(", ")}`,
  );
}

/** The supervisor refuses a proxy configuration that is incomplete; so does the driver, before any sandbox. */
function checkProxy(settings: Settings, text: (name: string) => string | undefined): void {
  const { httpsProxy, noProxy, proxyAuthFile } = settings;
  if (httpsProxy !== undefined) {
    if (httpsProxy.trim() === "") invalid("https_proxy must not be empty when set");
    if (/^[a-z]+:\/\/[^/]*@/i.test(httpsProxy)) {
      invalid(
        "https_proxy must not embed credentials in the URL; supply them via proxy_auth_file so they are not stored " +
          "in config or container metadata",
      );
    }
    const [, port] = /^http:\/\/(?:\[[0-9a-f:]+\]|[^/:?#\s]+):(\d+)\/?$/i.exec(httpsProxy.trim()) ?? [];
    if (!port) invalid(`https_proxy must have the form http://host:port, not '${httpsProxy}'`);
    if (Number(port) === 0) invalid("https_proxy proxy URL port must not be 0");
  }
  const needsProxy = (name: string, value: unknown): void => {
    if (value !== undefined && httpsProxy === undefined)
      invalid(`${name} is set but no https_proxy is configured`);
  };
  if (noProxy?.trim() === "") invalid("no_proxy must not be empty when set; omit it instead");
  needsProxy("no_proxy", noProxy);
  if (proxyAuthFile?.trim() === "") invalid("proxy_auth_file must not be empty when set");
  needsProxy("proxy_auth_file", proxyAuthFile);
  needsProxy("proxy_connect_by_hostname", text("sandbox-proxy-connect-by-hostname"));
  if (proxyAuthFile !== undefined && !settings.proxyAuthAllowInsecure) {
    invalid(
      "proxy_auth_file sends the credential as cleartext Basic auth over the plain-TCP connection to the http:// " +
        "proxy; set proxy_auth_allow_insecure = true to accept that exposure, or remove proxy_auth_file",
    );
  }
  if (proxyAuthFile === undefined && text("sandbox-proxy-auth-allow-insecure") !== undefined) {
    invalid("proxy_auth_allow_insecure is set but no proxy_auth_file is configured");
  }
}

// ---------------------------------------------------------------------------------------------------------------
// Log: one line an event on stdout, in the form that the first-party drivers log in
// ---------------------------------------------------------------------------------------------------------------

const LEVELS = ["off", "error", "warn", "info", "debug", "trace"];
let logLevel = LEVELS.indexOf("info");

function log(
  level: "error" | "warn" | "info" | "debug",
  message: string,
  fields: Record<string, unknown> = {},
): void {
  if (LEVELS.indexOf(level) > logLevel) return;
  const pairs = Object.entries(fields).map(
    ([key, value]) => ` ${key}=${typeof value === "string" ? value : JSON.stringify(value)}`,
  );
  const time = new Date().toISOString().replace("Z", "000Z");
  process.stdout.write(
    `${time} ${level.toUpperCase().padStart(5)} openshell_driver_podman: ${message}${pairs.join("")}\n`,
  );
}

// ---------------------------------------------------------------------------------------------------------------
// Errors
// ---------------------------------------------------------------------------------------------------------------

/** The codes of gRPC that this driver answers with. */
const enum Code {
  INVALID_ARGUMENT = 3,
  NOT_FOUND = 5,
  ALREADY_EXISTS = 6,
  FAILED_PRECONDITION = 9,
  ABORTED = 10,
  INTERNAL = 13,
  UNAVAILABLE = 14,
}

class RpcError extends Error {
  constructor(
    readonly code: Code,
    message: string,
  ) {
    super(message);
  }
}

const notFound = (): RpcError => new RpcError(Code.NOT_FOUND, "sandbox not found");
const alreadyExists = (): RpcError => new RpcError(Code.ALREADY_EXISTS, "sandbox already exists");
const messageOf = (error: unknown): string => (error instanceof Error ? error.message : String(error));

function refuse(code: Code, message: string): never {
  throw new RpcError(code, message);
}

/** An answer of the engine other than success, or none at all (`status` 0). */
class EngineError extends Error {
  constructor(
    readonly status: number,
    readonly reason: string,
    message: string,
  ) {
    super(
      status === 0
        ? message
        : status === 404
          ? `podman API not found (404): ${message}`
          : status === 409
            ? `podman API conflict (409): ${message}`
            : `podman API error (${status}): ${message}`,
    );
  }
}

/** The container is gone. While it is being removed, Podman says so with a 500. */
const isGone = (error: unknown): boolean =>
  error instanceof EngineError && (error.status === 404 || error.reason === "no such container");

const isDuplicate = (error: unknown): boolean =>
  error instanceof EngineError &&
  (error.status === 409 || /already exists|already in use|name in use/.test(error.reason + error.message));

// ---------------------------------------------------------------------------------------------------------------
// The engine: libpod REST over a Unix socket
// ---------------------------------------------------------------------------------------------------------------

interface ListEntry {
  Id: string;
  Names: string[];
  State: string;
  Labels: Record<string, string> | null;
  Networks: string[] | null;
}

interface Inspect {
  Id: string;
  Name: string;
  State: {
    Status: string;
    ExitCode: number;
    OOMKilled: boolean;
    StartedAt: string;
    FinishedAt: string;
    Health?: { Status: string } | null;
    /** Podman 4 under its older name. */
    Healthcheck?: { Status: string } | null;
  };
  Config: { Labels: Record<string, string> | null };
  NetworkSettings?: { Networks: Record<string, unknown> | null };
}

interface Info {
  host: {
    cgroupVersion: string;
    networkBackend?: string;
    rootlessNetworkCmd?: string;
    security: { rootless: boolean };
  };
}

interface EngineEvent {
  Action: string;
  Actor: { ID: string; Attributes: Record<string, string> };
}

interface EngineCall {
  body?: unknown;
  raw?: string | Uint8Array;
  /** Until the whole answer is there; of an endless one, until it begins. */
  timeoutMs?: number;
  signal?: AbortSignal;
  endless?: boolean;
}

const API_TIMEOUT_MS = 30_000;
const PULL_TIMEOUT_MS = 600_000;

class Engine {
  constructor(readonly socket: string) {}

  /** One call on a connection of its own, so that an engine that was restarted is no surprise. */
  private async request(method: string, path: string, call: EngineCall = {}): Promise<Response> {
    const { body, raw, timeoutMs = API_TIMEOUT_MS, signal, endless = false } = call;
    const deadline = new AbortController();
    const timer = setTimeout(() => deadline.abort(), timeoutMs);
    const options: BunFetchRequestInit & { timeout: false } = {
      method,
      unix: this.socket,
      keepalive: false,
      // Bun ends a silent response after five minutes; the deadlines are ours.
      timeout: false,
      signal: signal ? AbortSignal.any([deadline.signal, signal]) : deadline.signal,
      ...(body !== undefined && {
        body: JSON.stringify(body),
        headers: { "content-type": "application/json" },
      }),
      ...(raw !== undefined && { body: raw, headers: { "content-type": "application/octet-stream" } }),
    };
    try {
      const response = await fetch(`http://d${path}`, options);
      return endless ? response : new Response((await response.text()) || null, response);
    } catch (error) {
      if (signal?.aborted) throw signal.reason;
      const what = `${method} ${path.split("?", 1)[0]}`;
      if (deadline.signal.aborted) {
        throw new EngineError(0, "timeout", `timeout after ${timeoutMs / 1000}s: ${what}`);
      }
      const why = messageOf(error);
      throw new EngineError(0, "connection", `connection error: ${this.socket}: ${why} (${what})`);
    } finally {
      clearTimeout(timer);
    }
  }

  /**
   * The text of a successful answer ("" for 204 and 304).
   * @throws EngineError for any other answer, a deadline passed, or no connection.
   */
  async call(method: string, path: string, call: EngineCall = {}): Promise<string> {
    const response = await this.request(method, `/v4.0.0/libpod${path}`, call);
    const text = await response.text();
    if (response.ok || response.status === 304) return text;
    throw engineError(response.status, text);
  }

  async get<Type>(path: string): Promise<Type> {
    const text = await this.call("GET", path);
    try {
      return JSON.parse(text) as Type;
    } catch (error) {
      throw new EngineError(0, "json", `JSON error: ${messageOf(error)}: ${text.slice(0, 200)}`);
    }
  }

  /** A delete that succeeds when there is nothing to delete. */
  async discard(path: string): Promise<void> {
    await this.call("DELETE", path).catch((error: unknown) => {
      if (!isGone(error)) throw error;
    });
  }

  async ping(timeoutMs = API_TIMEOUT_MS): Promise<void> {
    const response = await this.request("GET", "/_ping", { timeoutMs });
    if (!response.ok) throw new EngineError(response.status, "", "ping failed");
    if (!response.headers.has("libpod-api-version")) {
      throw new EngineError(
        0,
        "not podman",
        `connection error: ${this.socket}: the answer to /_ping is not Podman's`,
      );
    }
  }

  list(labels: string[]): Promise<ListEntry[]> {
    return this.get(`/containers/json?all=true&filters=${filters({ label: labels })}`);
  }

  inspect(id: string): Promise<Inspect> {
    return this.get(`/containers/${id}/json`);
  }

  /** Pulls as the policy says. The engine reports a failure in the last line of a successful answer. */
  async pull(reference: string, policy: string, signal: AbortSignal): Promise<void> {
    const query = `reference=${encodeURIComponent(reference)}&policy=${policy}`;
    const text = await this.call("POST", `/images/pull?${query}`, { timeoutMs: PULL_TIMEOUT_MS, signal });
    const last = text.trimEnd().split("\n").at(-1) ?? "";
    const { error } = (last.startsWith("{") ? JSON.parse(last) : {}) as { error?: string };
    if (error) throw new EngineError(500, error, `image pull failed: ${error}`);
  }

  /**
   * The events of managed containers. Resolves when the engine has accepted the subscription: nothing that happens
   * afterwards is missed. The stream ends when the engine goes away.
   */
  async events(signal: AbortSignal): Promise<AsyncGenerator<EngineEvent>> {
    const query = `stream=true&filters=${filters({ type: ["container"], label: [`${LABEL.managed}=true`] })}`;
    const response = await this.request("GET", `/v4.0.0/libpod/events?${query}`, { signal, endless: true });
    if (!response.ok || !response.body) throw engineError(response.status, await response.text());
    return lines(response.body);
  }
}

function engineError(status: number, text: string): EngineError {
  try {
    const { cause = "", message = "" } = JSON.parse(text) as { cause?: string; message?: string };
    return new EngineError(status, cause, message || cause || text);
  } catch {
    return new EngineError(status, "", text.trim());
  }
}

const filters = (of: Record<string, string[]>): string => encodeURIComponent(JSON.stringify(of));

async function* lines(stream: ReadableStream<Uint8Array>): AsyncGenerator<EngineEvent> {
  const decoder = new TextDecoder();
  let rest = "";
  for await (const chunk of stream) {
    const parts = (rest + decoder.decode(chunk, { stream: true })).split("\n");
    rest = parts.pop() ?? "";
    for (const line of parts) if (line.trim()) yield JSON.parse(line) as EngineEvent;
  }
}

/** The first socket on which a Podman answers, of those that the first-party driver would try. */
async function detectPodman(): Promise<string> {
  const { OPENSHELL_PODMAN_SOCKET, XDG_RUNTIME_DIR, HOME } = process.env;
  const candidates = [
    OPENSHELL_PODMAN_SOCKET?.trim(),
    XDG_RUNTIME_DIR && `${XDG_RUNTIME_DIR}/podman/podman.sock`,
    process.platform === "linux" && `/run/user/${process.getuid?.()}/podman/podman.sock`,
    HOME && `${HOME}/.local/share/containers/podman/machine/podman.sock`,
  ];
  for (const candidate of candidates) {
    if (!candidate || !existsSync(candidate)) continue;
    const answers = await new Engine(candidate).ping(1_000).then(
      () => true,
      () => false,
    );
    if (answers) return candidate;
  }
  return invalid(
    "no responsive Podman API socket found; set OPENSHELL_PODMAN_SOCKET or configure socket_path",
  );
}

// ---------------------------------------------------------------------------------------------------------------
// What a sandbox asks for, checked
// ---------------------------------------------------------------------------------------------------------------

const LABEL = {
  managed: "openshell.managed",
  id: "openshell.ai/sandbox-id",
  name: "openshell.ai/sandbox-name",
  namespace: "openshell.ai/sandbox-namespace",
  workspace: "openshell.ai/sandbox-workspace",
};

/** Podman's rule for names; also what may stand in a URL's path unescaped. */
function checkName(name: string, fail: (message: string) => never): void {
  if (name === "") fail("name must not be empty");
  if (name.length > 255) fail(`name exceeds maximum length of 255 characters (got ${name.length})`);
  if (!/^[a-zA-Z0-9]/.test(name))
    fail(`name must start with an alphanumeric character: ${JSON.stringify(name)}`);
  if (!/^[a-zA-Z0-9._-]+$/.test(name)) fail(`name contains invalid characters: ${JSON.stringify(name)}`);
}

const containerName = ({ workspace, name, id }: Sandbox): string => `openshell-${workspace}--${name}-${id}`;
const volumeName = (id: string): string => `openshell-sandbox-${id}-workspace`;
const tokenSecret = (id: string): string => `openshell-token-${id}`;
const proxySecret = (id: string): string => `openshell-proxy-auth-${id}`;
/** Every secret that this or the first-party driver may have made for a sandbox. */
const secretNames = (id: string): string[] => [
  tokenSecret(id),
  proxySecret(id),
  `openshell-tls-ca-${id}`,
  `openshell-tls-cert-${id}`,
  `openshell-tls-key-${id}`,
];

type Json = null | boolean | number | string | Json[] | { [key: string]: Json };

function toJson(value: Value): Json {
  switch (value.kind) {
    case "boolValue":
      return value.boolValue ?? false;
    case "numberValue":
      return value.numberValue ?? 0;
    case "stringValue":
      return value.stringValue ?? "";
    case "structValue":
      return structToJson(value.structValue ?? { fields: {} });
    case "listValue":
      return (value.listValue?.values ?? []).map(toJson);
    default:
      return null;
  }
}

const structToJson = ({ fields }: Struct): { [key: string]: Json } =>
  Object.fromEntries(Object.entries(fields ?? {}).map(([key, value]) => [key, toJson(value)]));

interface MountRequest {
  type: "bind" | "volume" | "tmpfs" | "image";
  source: string;
  target: string;
  readOnly: boolean;
  selinuxLabel: string | null;
  options: string[];
  sizeBytes: number | null;
  mode: number | null;
}

interface DriverConfig {
  cdiDevices: string[] | null;
  mounts: MountRequest[];
}

const MOUNT_FIELDS: Record<MountRequest["type"], string[]> = {
  bind: ["source", "target", "read_only", "selinux_label"],
  volume: ["source", "target", "read_only", "subpath"],
  tmpfs: ["target", "options", "size_bytes", "mode"],
  image: ["source", "target", "read_only", "subpath"],
};

/** Paths that belong to OpenShell inside a sandbox; no mount may cover them or lie in them. */
const RESERVED = [
  "/opt/openshell",
  "/etc/openshell",
  "/etc/openshell-tls",
  "/run/openshell",
  "/run/openshell-sidecar",
  "/run/netns",
  "/var/run/netns",
];

/**
 * Reads `template.driver_config`: `cdi_devices`, and `mounts` of type bind, volume, tmpfs and image.
 * @throws RpcError INVALID_ARGUMENT for a field that the schema does not have or a value of another type.
 */
function readDriverConfig(config: Struct | null): DriverConfig {
  const bad = (problem: string): never =>
    refuse(Code.INVALID_ARGUMENT, `invalid podman driver_config: ${problem}`);
  const list = (value: Json, name: string): Json[] =>
    Array.isArray(value) ? value : bad(`${name} must be a list`);
  const text = (value: Json | undefined, name: string): string =>
    typeof value === "string"
      ? value
      : bad(value === undefined ? `missing field \`${name}\`` : `${name} must be a string`);

  const mount = (value: Json): MountRequest => {
    if (value === null || typeof value !== "object" || Array.isArray(value))
      return bad("a mount must be an object");
    const type = text(value.type, "type") as MountRequest["type"];
    const fields =
      MOUNT_FIELDS[type] ??
      bad(`unknown variant \`${type}\`, expected one of \`bind\`, \`volume\`, \`tmpfs\`, \`image\``);
    for (const key of Object.keys(value)) {
      if (key !== "type" && !fields.includes(key)) {
        bad(`unknown field \`${key}\`, expected one of ${fields.map((field) => `\`${field}\``).join(", ")}`);
      }
    }
    const number = (name: string): number | null => {
      const found = value[name] ?? null;
      return found === null || typeof found === "number" ? found : bad(`${name} must be a number`);
    };
    const label = value.selinux_label ?? null;
    if (label !== null && label !== "shared" && label !== "private")
      bad("selinux_label must be `shared` or `private`");
    if (value.read_only !== undefined && typeof value.read_only !== "boolean")
      bad("read_only must be a boolean");
    if (value.subpath !== undefined && value.subpath !== null)
      checkSubpath(text(value.subpath, "subpath"), type);
    return {
      type,
      source: type === "tmpfs" ? "tmpfs" : text(value.source, "source"),
      target: text(value.target, "target"),
      readOnly: value.read_only !== false,
      selinuxLabel: label as string | null,
      options: list(value.options ?? [], "options").map((option) => text(option, "options")),
      sizeBytes: number("size_bytes"),
      mode: number("mode"),
    };
  };

  const json = config ? structToJson(config) : {};
  for (const key of Object.keys(json)) {
    if (key !== "cdi_devices" && key !== "mounts")
      bad(`unknown field \`${key}\`, expected \`cdi_devices\` or \`mounts\``);
  }
  const devices = json.cdi_devices === undefined ? null : list(json.cdi_devices, "cdi_devices");
  if (devices?.length === 0) bad("must be a non-empty list of strings");
  const cdiDevices = devices?.map((device, index) => {
    const found = text(device, "cdi_devices");
    return found.trim() ? found : bad(`[${index}] must be a non-empty string`);
  });
  return { cdiDevices: cdiDevices ?? null, mounts: list(json.mounts ?? [], "mounts").map(mount) };
}

const unmet = (message: string): never => refuse(Code.FAILED_PRECONDITION, message);

function checkSubpath(subpath: string, type: string): never {
  if (subpath === "") unmet("mount subpath must not be empty");
  if (subpath.startsWith("/") || subpath.split("/").includes("..")) {
    unmet("mount subpath must be relative and must not contain '..'");
  }
  return unmet(`podman ${type} mounts do not support subpath`);
}

const within = (path: string, parent: string): boolean => path === parent || path.startsWith(`${parent}/`);

/** The target without its trailing slash. */
function checkTarget(target: string): string {
  if (target === "") unmet("mount target must not be empty");
  if (target !== target.trim()) unmet("mount target must not contain surrounding whitespace");
  if (/\p{Cc}/u.test(target)) unmet("mount target must not contain control characters");
  if (!target.startsWith("/")) unmet("mount target must be an absolute container path");
  const path = target.replace(/\/+$/, "");
  if (path === "") unmet("mount target must not be the container root");
  if (
    path
      .slice(1)
      .split("/")
      .some((part) => ["", ".", ".."].includes(part))
  ) {
    unmet("mount target must be normalized without empty, '.', or '..' path segments");
  }
  for (const reserved of RESERVED) {
    if (within(path, reserved) || within(reserved, path)) {
      unmet(`mount target '${target}' conflicts with reserved OpenShell path '${reserved}'`);
    }
  }
  if (within("/sandbox", path)) unmet(`mount target '${target}' is reserved for the OpenShell workspace`);
  return path;
}

/** What the operator and the paths allow. @throws RpcError FAILED_PRECONDITION */
function checkMounts(mounts: MountRequest[], enableBindMounts: boolean): void {
  const targets = new Set<string>();
  for (const mount of mounts) {
    const { type, source } = mount;
    if (type === "bind" && !enableBindMounts) {
      unmet("podman bind mounts require enable_bind_mounts = true in [openshell.drivers.podman]");
    }
    if (source === "") unmet(`${type} source must not be empty`);
    if (source !== source.trim()) unmet(`${type} source must not contain surrounding whitespace`);
    if (source.includes("\0")) unmet(`${type} source must not contain NUL bytes`);
    if (type === "bind" && !source.startsWith("/")) unmet("bind source must be an absolute host path");
    if (type === "volume") checkName(source, unmet);
    if (mount.options.some((option) => option.trim() === ""))
      unmet("tmpfs options must not contain empty values");
    if (mount.sizeBytes !== null && !Number.isSafeInteger(mount.sizeBytes))
      unmet("tmpfs size_bytes must be an integer");
    if (mount.sizeBytes !== null && mount.sizeBytes <= 0) unmet("tmpfs size_bytes must be positive");
    if (mount.mode !== null && !Number.isSafeInteger(mount.mode)) unmet("tmpfs mode must be an integer");
    if (mount.mode !== null && mount.mode < 0) unmet("tmpfs mode must be zero or greater");
    const target = checkTarget(mount.target);
    if (targets.has(target)) unmet(`duplicate podman driver_config mount target '${target}'`);
    targets.add(target);
  }
}

/** Cores ("2", "0.5") or thousandths ("500m") as microseconds of CPU time in 100 ms; null if it is neither. */
function cpuQuota(quantity: string): number | null {
  const [, number, milli] = /^(\d+(?:\.\d+)?)(m?)$/.exec(quantity) ?? [];
  if (!number || (milli && number.includes("."))) return null;
  const quota = Math.floor(Number(number) * (milli ? 100 : 100_000));
  return quota > 0 ? quota : null;
}

const UNITS: Record<string, number> = {
  "": 1,
  k: 1e3,
  K: 1e3,
  M: 1e6,
  G: 1e9,
  T: 1e12,
  P: 1e15,
  E: 1e18,
  Ki: 2 ** 10,
  Mi: 2 ** 20,
  Gi: 2 ** 30,
  Ti: 2 ** 40,
  Pi: 2 ** 50,
  Ei: 2 ** 60,
};

/** Bytes of a Kubernetes quantity ("256Mi", "1G", "1048576"); null if it is none. */
function memoryBytes(quantity: string): number | null {
  const [, number, unit = ""] = /^(\d+(?:\.\d+)?)([kKMGTPE]?i?)$/.exec(quantity) ?? [];
  const factor = UNITS[unit];
  if (!number || factor === undefined) return null;
  const bytes = Math.floor(Number(number) * factor);
  return bytes > 0 && bytes < 2 ** 63 ? bytes : null;
}

/** Limits and requests that cannot be read are an error: a sandbox with other limits than asked for is a trap. */
function checkQuantities(resources: Resources | null): void {
  for (const name of ["cpu_limit", "cpu_request"] as const) {
    if (resources?.[name] && cpuQuota(resources[name]) === null) {
      refuse(
        Code.INVALID_ARGUMENT,
        `invalid ${name} '${resources[name]}': expected cores like '0.5' or '500m'`,
      );
    }
  }
  for (const name of ["memory_limit", "memory_request"] as const) {
    if (resources?.[name] && memoryBytes(resources[name]) === null) {
      refuse(
        Code.INVALID_ARGUMENT,
        `invalid ${name} '${resources[name]}': expected bytes like '1048576' or '256Mi'`,
      );
    }
  }
}

// ---------------------------------------------------------------------------------------------------------------
// GPUs: CDI device names, from the request or in turn from what the host has
// ---------------------------------------------------------------------------------------------------------------

let nextGpu = 0;

/**
 * The devices of a sandbox, null if it asks for none. `take` moves on to the next ones.
 * @throws RpcError INVALID_ARGUMENT for a request that contradicts itself, FAILED_PRECONDITION for too few devices.
 */
function gpuDevices(sandbox: Sandbox, config: DriverConfig, take: boolean): string[] | null {
  const gpu = sandbox.spec?.resource_requirements?.gpu ?? null;
  const count = gpu ? (gpu.count ?? 1) : 0;
  if (gpu && count === 0) refuse(Code.INVALID_ARGUMENT, "gpu count must be greater than 0");
  if (config.cdiDevices) {
    const field = "driver_config.cdi_devices";
    const twice = config.cdiDevices.find((device, index) => config.cdiDevices?.indexOf(device) !== index);
    if (twice !== undefined)
      refuse(Code.INVALID_ARGUMENT, `${field} contains duplicate device ID '${twice}'`);
    if (!gpu) refuse(Code.INVALID_ARGUMENT, `${field} requires a gpu resource requirement`);
    if (count !== config.cdiDevices.length) {
      refuse(
        Code.INVALID_ARGUMENT,
        `gpu count (${count}) must match ${field} length (${config.cdiDevices.length})`,
      );
    }
    return config.cdiDevices;
  }
  if (!gpu) return null;
  const devices = readdirSync("/dev")
    .map((name) => /^nvidia(\d+)$/.exec(name)?.[1])
    .filter((index) => index !== undefined)
    .toSorted((a, b) => Number(a) - Number(b))
    .map((index) => `nvidia.com/gpu=${index}`);
  if (devices.length === 0) unmet("no NVIDIA CDI GPU devices were discovered");
  if (count > devices.length) {
    const [verb, noun] = devices.length === 1 ? ["is", "device"] : ["are", "devices"];
    unmet(
      `GPU sandbox requested ${count} GPUs, but only ${devices.length} selectable NVIDIA CDI GPU ${noun} ${verb} available`,
    );
  }
  const chosen = Array.from(
    { length: count },
    (_, offset) => devices[(nextGpu + offset) % devices.length] as string,
  );
  if (take) nextGpu += count;
  return chosen;
}

// ---------------------------------------------------------------------------------------------------------------
// The container of a sandbox
// ---------------------------------------------------------------------------------------------------------------

const TOKEN_PATH = "/etc/openshell/auth/sandbox.jwt";
const PROXY_AUTH_PATH = "/etc/openshell/auth/upstream-proxy";
const TLS_PATHS = {
  ca: "/etc/openshell/tls/client/ca.crt",
  cert: "/etc/openshell/tls/client/tls.crt",
  key: "/etc/openshell/tls/client/tls.key",
};
const SUPERVISOR_FOLDER = "/opt/openshell/bin";

interface ContainerInput {
  sandbox: Sandbox;
  config: DriverConfig;
  devices: string[] | null;
  /** As the user named it, and the id that the name stands for now. */
  image: { reference: string; id: string; user: string };
  withToken: boolean;
}

function containerEnvironment(
  settings: Settings,
  { sandbox, image, withToken }: ContainerInput,
): Record<string, string> {
  const { spec } = sandbox;
  const user = { ...spec?.template?.environment, ...spec?.environment };
  const sorted = Object.fromEntries(Object.entries(user).toSorted(([a], [b]) => (a < b ? -1 : 1)));
  const command = spec && spec.command.length > 0 ? spec.command : ["/bin/bash", "-l"];
  const tty = spec && spec.command.length > 0 ? spec.tty : true;
  // The driver's own come last: no user may move a sandbox to another gateway or identity.
  const env: Record<string, string> = {
    ...(spec?.log_level && { OPENSHELL_LOG_LEVEL: spec.log_level }),
    ...user,
    ...(Object.keys(user).length > 0 && { OPENSHELL_USER_ENVIRONMENT: JSON.stringify(sorted) }),
    OPENSHELL_SANDBOX: sandbox.name,
    OPENSHELL_SANDBOX_ID: sandbox.id,
    OPENSHELL_ENDPOINT: settings.grpcEndpoint,
    OPENSHELL_SSH_SOCKET_PATH: settings.sshSocketPath,
    OPENSHELL_CONTAINER_IMAGE: image.reference,
    OPENSHELL_MAIN_PROCESS_SPEC: JSON.stringify({ version: 1, command, tty }),
    OPENSHELL_TELEMETRY_ENABLED: telemetry(),
    OPENSHELL_NETWORK_RUNTIME_CAPABILITIES: "policy-dns-transparent-tcp",
    OPENSHELL_OCI_IMAGE_USER: image.user,
    OPENSHELL_SANDBOX_UID: "",
    OPENSHELL_SANDBOX_GID: "",
    ...(settings.tls && {
      OPENSHELL_TLS_CA: TLS_PATHS.ca,
      OPENSHELL_TLS_CERT: TLS_PATHS.cert,
      OPENSHELL_TLS_KEY: TLS_PATHS.key,
    }),
  };
  delete env.OPENSHELL_SANDBOX_TOKEN;
  delete env.OPENSHELL_SANDBOX_TOKEN_FILE;
  // A user who could rename the gateway could answer in its place and take the token.
  delete env.OPENSHELL_GATEWAY_TLS_SERVER_NAME;
  if (withToken) env.OPENSHELL_SANDBOX_TOKEN_FILE = TOKEN_PATH;
  return env;
}

/** A test driver reports to nobody unless told to. */
const telemetry = (): string =>
  ["1", "true", "yes", "on"].includes((process.env.OPENSHELL_TELEMETRY_ENABLED ?? "").trim().toLowerCase())
    ? "true"
    : "false";

function proxyArguments(settings: Settings): string[] {
  return [
    ...(settings.httpsProxy ? ["--upstream-proxy", settings.httpsProxy] : []),
    ...(settings.noProxy ? ["--upstream-no-proxy", settings.noProxy] : []),
    ...(settings.proxyAuthFile ? ["--upstream-proxy-auth-file", PROXY_AUTH_PATH] : []),
    ...(settings.proxyAuthAllowInsecure ? ["--upstream-proxy-auth-allow-insecure"] : []),
    ...(settings.proxyConnectByHostname ? ["--upstream-proxy-connect-by-hostname"] : []),
  ];
}

/** The mounts of driver_config, in the three lists that libpod has for them. */
function userMounts(mounts: MountRequest[]): { volumes: object[]; images: object[]; others: object[] } {
  const access = ({ readOnly }: MountRequest): string => (readOnly ? "ro" : "rw");
  const relabel: Record<string, string> = { shared: "z", private: "Z" };
  const of = (type: MountRequest["type"]): MountRequest[] => mounts.filter((mount) => mount.type === type);
  return {
    volumes: of("volume").map((mount) => ({
      name: mount.source,
      dest: mount.target,
      options: [access(mount)],
    })),
    images: of("image").map(({ source, target, readOnly }) => ({
      source,
      destination: target,
      rw: !readOnly,
    })),
    others: [
      ...of("bind").map((mount) => ({
        type: "bind",
        source: mount.source,
        destination: mount.target.replace(/\/+$/, ""),
        options: [access(mount), "rbind", ...(mount.selinuxLabel ? [relabel[mount.selinuxLabel]] : [])],
      })),
      ...of("tmpfs").map(({ target, options, sizeBytes, mode }) => ({
        type: "tmpfs",
        source: "tmpfs",
        destination: target,
        options: [
          ...(options.length > 0 ? options.map((option) => option.trim()) : ["rw"]),
          ...(sizeBytes !== null ? [`size=${sizeBytes}`] : []),
          ...(mode !== null ? [`mode=${mode.toString(8)}`] : []),
        ],
      })),
    ],
  };
}

/** The body of libpod's containers/create. The supervisor and the gateway depend on every name and path in it. */
function containerSpec(settings: Settings, bridgeAddress: string | null, input: ContainerInput): object {
  const { sandbox, config, devices, image, withToken } = input;
  const resources = sandbox.spec?.template?.resources;
  const mounts = userMounts(config.mounts);
  const readOnlyBind = ["ro", "rbind", ...(existsSync("/sys/fs/selinux") ? ["z"] : [])];
  // Podman before 4.7 does not know the word: it would write it into the container's hosts file as it stands.
  const host = settings.hostGatewayIp || bridgeAddress || "host-gateway";
  const secret = (source: string, target: string): object => ({
    source,
    target,
    uid: 0,
    gid: 0,
    mode: 0o400,
  });
  return {
    name: containerName(sandbox),
    image: image.id,
    image_pull_policy: "never",
    labels: {
      ...sandbox.spec?.template?.labels,
      [LABEL.id]: sandbox.id,
      [LABEL.name]: sandbox.name,
      [LABEL.namespace]: sandbox.namespace,
      [LABEL.workspace]: sandbox.workspace,
      [LABEL.managed]: "true",
    },
    env: containerEnvironment(settings, input),
    hostname: `sandbox-${sandbox.name}`,
    user: "0:0",
    entrypoint: [`${SUPERVISOR_FOLDER}/openshell-sandbox`],
    command: ["--workdir", "/sandbox", ...proxyArguments(settings)],
    stop_timeout: settings.stopTimeout,
    volumes: [{ name: volumeName(sandbox.id), dest: "/sandbox", options: ["rw"] }, ...mounts.volumes],
    image_volumes: [
      { source: settings.supervisorImage, destination: SUPERVISOR_FOLDER, rw: false },
      ...mounts.images,
    ],
    mounts: [
      { type: "tmpfs", source: "tmpfs", destination: "/run/netns", options: ["rw", "nosuid", "nodev"] },
      ...(["ca", "cert", "key"] as const)
        .filter(() => settings.tls)
        .map((part) => ({
          type: "bind",
          source: settings.tls?.[part],
          destination: TLS_PATHS[part],
          options: readOnlyBind,
        })),
      ...mounts.others,
    ],
    secrets: [
      ...(withToken ? [secret(tokenSecret(sandbox.id), TOKEN_PATH)] : []),
      ...(settings.proxyAuthFile ? [secret(proxySecret(sandbox.id), PROXY_AUTH_PATH)] : []),
    ],
    secret_env: {},
    netns: { nsmode: "bridge" },
    networks: { [settings.networkName]: {} },
    hostadd: [`host.containers.internal:${host}`, `host.openshell.internal:${host}`],
    dns_search: [],
    dns_option: [],
    portmappings: [{ host_port: 0, container_port: 2222, protocol: "tcp" }],
    ...(devices && { devices: devices.map((path) => ({ path })) }),
    cap_add: ["SYS_ADMIN", "NET_ADMIN", "SYS_PTRACE", "SYSLOG", "DAC_READ_SEARCH", "SETPCAP"],
    cap_drop: ["DAC_OVERRIDE", "FSETID", "KILL", "NET_BIND_SERVICE", "NET_RAW", "SETFCAP", "SYS_CHROOT"],
    no_new_privileges: true,
    seccomp_profile_path: "unconfined",
    resource_limits: {
      cpu: { quota: cpuQuota(resources?.cpu_limit || "2"), period: 100_000 },
      memory: { limit: memoryBytes(resources?.memory_limit || "4Gi") },
      ...(settings.pidsLimit > 0 && { PidsLimit: settings.pidsLimit }),
    },
    healthconfig: {
      test: [
        "CMD-SHELL",
        `test -e /var/run/openshell-ssh-ready || test -S ${settings.sshSocketPath} || ss -tlnp | grep -q :2222`,
      ],
      Interval: 10e9,
      Timeout: 2e9,
      Retries: 10,
      StartPeriod: 5e9,
    },
  };
}

/** The operator's proxy credentials, `user:pass`. Nothing of them is in an error. */
function readProxyCredential(path: string): string {
  const most = 4096;
  const unreadable = (problem: string): never =>
    refuse(Code.INTERNAL, `${problem} proxy auth file '${path}'`);
  let file: number;
  try {
    // Without O_NONBLOCK a FIFO would hold the driver until somebody writes to it.
    file = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
  } catch (error) {
    return unreadable(`failed to open (${(error as NodeJS.ErrnoException).code})`);
  }
  try {
    const stat = fstatSync(file);
    if (!stat.isFile()) unreadable("not a regular file:");
    if (stat.size > most) unreadable(`larger than ${most} bytes:`);
    const buffer = Buffer.alloc(most);
    const text = buffer.toString("utf8", 0, readSync(file, buffer, 0, most, 0)).trim();
    const bad = (rule: string): never => refuse(Code.INVALID_ARGUMENT, `proxy_auth_file '${path}': ${rule}`);
    if (text === "") bad("credential is empty");
    if (/\p{Cc}/u.test(text)) bad("credential contains control characters");
    if (!text.includes(":")) bad("credential must use the user:pass form (missing ':')");
    if (text.startsWith(":")) bad("credential must use the user:pass form (empty user)");
    return text;
  } finally {
    closeSync(file);
  }
}

/** Tags that move are asked for again on every create; a pinned image is pulled once. */
function supervisorPullPolicy(reference: string): string {
  const tag = reference.includes("@") ? "" : (/:([^/]*)$/.exec(reference)?.[1] ?? "latest");
  return tag === "dev" || tag === "latest" ? "newer" : "missing";
}

// ---------------------------------------------------------------------------------------------------------------
// What the gateway is told of a container
// ---------------------------------------------------------------------------------------------------------------

type Ready = Pick<DriverCondition, "status" | "reason" | "message" | "last_transition_time">;

function readyCondition({ State: state }: Inspect): Ready {
  const health = (state.Health ?? state.Healthcheck)?.Status;
  switch (state.Status) {
    case "running":
    case "stopping": {
      const [status, reason] =
        health === "healthy"
          ? ["True", "HealthCheckPassed"]
          : health === "unhealthy"
            ? ["False", "HealthCheckFailed"]
            : health === "starting"
              ? ["False", "HealthCheckStarting"]
              : ["False", "ContainerStarting"];
      return { status, reason, last_transition_time: state.StartedAt };
    }
    case "created":
    case "configured":
    case "initialized":
      return { status: "False", reason: "ContainerCreated" };
    case "exited":
    case "stopped":
      return {
        status: "False",
        reason: state.OOMKilled ? "OOMKilled" : "ContainerExited",
        message: state.OOMKilled
          ? "Container was killed by the OOM killer"
          : `Container exited with code ${state.ExitCode}`,
        last_transition_time: state.FinishedAt,
      };
    case "removing":
      return { status: "False", reason: "ContainerRemoving" };
    default:
      return { status: "Unknown", reason: "Unknown", message: `Unknown container state: ${state.Status}` };
  }
}

interface Identity {
  id: string;
  name: string;
  workspace: string;
}

/** Whose container it is; null if it is no sandbox. */
function identity(labels: Record<string, string> | null | undefined): Identity | null {
  const { [LABEL.id]: id, [LABEL.name]: name = "", [LABEL.workspace]: workspace } = labels ?? {};
  return id && workspace !== undefined ? { id, name, workspace } : null;
}

const snapshot = (
  who: Identity,
  container: { Id: string; Name: string },
  ready: Ready,
  deleting = false,
): DriverSandbox => ({
  ...who,
  status: {
    sandbox_name: container.Name.replace(/^\//, ""),
    instance_id: container.Id.slice(0, 12),
    conditions: [{ type: "Ready", ...ready }],
    deleting,
  },
});

/** The container is there, but the engine cannot say how it is. */
const unsure = (who: Identity, container: { Id: string; Name: string }, error: Error): DriverSandbox =>
  snapshot(who, container, {
    status: "Unknown",
    reason: "InspectFailed",
    message: `Container inspect failed: ${error.message}`,
  });

const hasExited = ({ State: { Status } }: Inspect): boolean => Status === "exited" || Status === "stopped";

// ---------------------------------------------------------------------------------------------------------------
// Watching
// ---------------------------------------------------------------------------------------------------------------

interface Watcher {
  send(event: WatchSandboxesEvent): void;
  fail(error: RpcError): void;
}

/**
 * One subscription to the engine's events for all watchers, and the driver's memory of which containers there are.
 *
 * Order: all that is sent about one sandbox goes through one queue, first snapshots included, so that no watcher sees
 * an older state after a newer one; different sandboxes do not wait for each other.
 */
class Watch {
  private readonly watchers = new Set<Watcher>();
  private readonly queues = new Map<string, Promise<void>>();
  /** Container id to sandbox id, of every container of this driver that was seen and not yet reported gone. */
  private readonly known = new Map<string, string>();
  /**
   * The end of a sandbox's last run, when it must not be reported any more: `restarted` once StartSandbox has begun,
   * otherwise because StopSandbox has reported it. Events of it may still be on their way.
   */
  private readonly fences = new Map<string, { finishedAt: string; restarted: boolean }>();
  private subscription: Promise<void> | null = null;
  private readonly ending = new AbortController();
  /** A burst of events is no reason for a burst of connections. */
  private readonly inspections = new Slots(16);

  constructor(
    private readonly engine: Engine,
    private readonly isOurs: (networks: string[]) => boolean,
    private readonly onVanished: (sandboxId: string) => void,
  ) {}

  /** Subscribes unless it is subscribed. @throws EngineError if the engine cannot be reached. */
  subscribe(): Promise<void> {
    this.subscription ??= this.open().catch((error: unknown) => {
      this.subscription = null;
      throw error;
    });
    return this.subscription;
  }

  private async open(): Promise<void> {
    const failed = new AbortController();
    const events = await this.engine.events(AbortSignal.any([this.ending.signal, failed.signal]));
    const entries = await this.ours().catch((error: unknown) => {
      failed.abort();
      throw error;
    });
    const present = new Map(entries.map(({ Id, Labels }) => [Id, identity(Labels) as Identity]));
    // What went away while nobody told us.
    for (const [containerId, id] of this.known) {
      if (!present.has(containerId)) void this.enqueue(id, () => this.gone(containerId, id));
    }
    for (const [containerId, who] of present) this.known.set(containerId, who.id);
    void this.follow(events);
  }

  private async follow(events: AsyncGenerator<EngineEvent>): Promise<void> {
    try {
      for await (const event of events) this.receive(event);
    } catch (error) {
      if (!this.ending.signal.aborted) log("warn", "podman event stream failed", { error: messageOf(error) });
    }
    if (this.ending.signal.aborted) return;
    log("warn", "podman event stream ended unexpectedly; watchers must reconnect");
    this.subscription = null;
    this.failAll(new RpcError(Code.INTERNAL, "podman event stream ended unexpectedly"));
    for (
      let pause = 100;
      !this.subscription && !this.ending.signal.aborted;
      pause = Math.min(pause * 2, 2_000)
    ) {
      await Bun.sleep(pause);
      await this.subscribe().catch((error: unknown) =>
        log("debug", "podman is not back yet", { error: messageOf(error) }),
      );
    }
  }

  /** Every container of this driver, as the engine lists it. */
  async ours(): Promise<ListEntry[]> {
    const all = await this.engine.list([`${LABEL.managed}=true`]);
    return all.filter(({ Labels, Networks }) => identity(Labels) && this.isOurs(Networks ?? []));
  }

  private receive({ Action, Actor }: EngineEvent): void {
    const who = identity(Actor.Attributes);
    if (!who) return;
    if (Action === "remove") void this.enqueue(who.id, () => this.gone(Actor.ID, who.id));
    else if (/^(create|start|stop|die|died|pause|unpause|health_status.*)$/.test(Action)) {
      void this.enqueue(who.id, () => this.refresh(Actor.ID, who));
    }
  }

  /** Runs `step` after everything that was queued for the sandbox before. */
  private enqueue(sandboxId: string, step: () => void | Promise<void>): Promise<void> {
    const last = (this.queues.get(sandboxId) ?? Promise.resolve()).then(step).catch((error: unknown) => {
      log("error", "could not report a sandbox", { sandbox_id: sandboxId, error: messageOf(error) });
    });
    this.queues.set(sandboxId, last);
    void last.then(() => this.queues.get(sandboxId) === last && this.queues.delete(sandboxId));
    return last;
  }

  /** Reads a container's state and reports it. */
  private async refresh(
    containerId: string,
    who: Identity,
    to: Iterable<Watcher> = this.watchers,
    first = false,
  ): Promise<void> {
    const found = await this.inspections.run(() =>
      this.engine.inspect(containerId).catch((error: unknown) => error),
    );
    if (isGone(found)) return this.gone(containerId, who.id);
    if (found instanceof Error) {
      if (!this.known.has(containerId)) return;
      const sandbox = unsure(who, { Id: containerId, Name: "" }, found);
      for (const watcher of to) watcher.send({ sandbox: { sandbox } });
      return;
    }
    this.report(found as Inspect, to, first);
  }

  private report(container: Inspect, to: Iterable<Watcher> = this.watchers, first = false): void {
    const sandbox = describe(container);
    if (!sandbox?.id || !this.isOurs(Object.keys(container.NetworkSettings?.Networks ?? {}))) return;
    this.known.set(container.Id, sandbox.id);
    const fence = this.fences.get(sandbox.id);
    const stale = hasExited(container) && fence?.finishedAt === container.State.FinishedAt;
    // A new watcher has not seen the end of a stopped sandbox; but once it is restarted, nobody may.
    if (stale && (fence.restarted || !first)) return;
    for (const watcher of to) watcher.send({ sandbox: { sandbox } });
  }

  private gone(containerId: string, sandboxId: string): void {
    if (!this.known.delete(containerId)) return;
    this.fences.delete(sandboxId);
    for (const watcher of this.watchers) watcher.send({ deleted: { sandbox_id: sandboxId } });
    this.onVanished(sandboxId);
  }

  /** Reports a stopped container now, and its end only this once. Resolves when it is sent. */
  stopped(container: Inspect, sandboxId: string): Promise<void> {
    return this.enqueue(sandboxId, () => {
      this.report(container);
      this.fences.set(sandboxId, { finishedAt: container.State.FinishedAt, restarted: false });
    });
  }

  /** From now on the end of the run before this start is not reported. */
  restarting(container: Inspect, sandboxId: string): void {
    if (hasExited(container))
      this.fences.set(sandboxId, { finishedAt: container.State.FinishedAt, restarted: true });
  }

  /** The start failed: the end of the last run is the truth again. */
  notRestarted(sandboxId: string): void {
    this.fences.delete(sandboxId);
  }

  /** Reports that a container was removed, unless that was reported. Resolves when it is sent. */
  removed(containerId: string, sandboxId: string): Promise<void> {
    this.known.set(containerId, sandboxId);
    return this.enqueue(sandboxId, () => this.gone(containerId, sandboxId));
  }

  /** A create that was cancelled before it had a container. */
  cancelled(sandboxId: string): Promise<void> {
    return this.removed(`cancelled-${sandboxId}`, sandboxId);
  }

  /** Adds a watcher: it gets every change from now on, and the state of every sandbox. @throws EngineError */
  async add(watcher: Watcher): Promise<void> {
    await this.subscribe();
    this.watchers.add(watcher);
    const entries = await this.ours();
    const first = entries.map(({ Id, Labels }) => {
      const who = identity(Labels) as Identity;
      this.known.set(Id, who.id);
      return this.enqueue(who.id, () => this.refresh(Id, who, [watcher], true));
    });
    await Promise.all(first);
  }

  remove(watcher: Watcher): void {
    this.watchers.delete(watcher);
  }

  private failAll(error: RpcError): void {
    const watchers = [...this.watchers];
    this.watchers.clear();
    for (const watcher of watchers) watcher.fail(error);
  }

  end(): void {
    this.ending.abort();
    this.failAll(new RpcError(Code.UNAVAILABLE, "driver is shutting down"));
  }
}

/** The snapshot of a container; null if it is no sandbox. */
function describe(container: Inspect): DriverSandbox | null {
  const who = identity(container.Config.Labels);
  return who && snapshot(who, container, readyCondition(container), container.State.Status === "removing");
}

/** Lets at most `free` pieces of work run at a time. */
class Slots {
  private readonly waiting: (() => void)[] = [];

  constructor(private free: number) {}

  async run<Result>(work: () => Promise<Result>): Promise<Result> {
    if (this.free === 0) await new Promise<void>((ready) => this.waiting.push(ready));
    else this.free--;
    try {
      return await work();
    } finally {
      const next = this.waiting.shift();
      if (next) next();
      else this.free++;
    }
  }
}

// ---------------------------------------------------------------------------------------------------------------
// The driver
// ---------------------------------------------------------------------------------------------------------------

interface Host {
  rootless: boolean;
  rootlessNetworkCmd: string;
  /** The host's address on the sandboxes' bridge, where there is one. */
  bridgeAddress: string | null;
}

class Driver {
  readonly watch: Watch;
  private readonly locks = new Map<string, Promise<unknown>>();
  private readonly creating = new Map<string, { abort: AbortController; settled: Promise<unknown> }>();

  constructor(
    private readonly settings: Settings,
    private readonly engine: Engine,
    private readonly host: Host,
  ) {
    const isOurs = (networks: string[]): boolean => networks.includes(settings.networkName);
    this.watch = new Watch(engine, isOurs, (id) => void this.sweep(id));
  }

  /** Create, stop, start and delete of one sandbox run one after the other. */
  private exclusively<Result>(sandboxId: string, work: () => Promise<Result>): Promise<Result> {
    const before = this.locks.get(sandboxId) ?? Promise.resolve();
    const result = before.then(work, work);
    const settled = result.catch(() => {});
    this.locks.set(sandboxId, settled);
    void settled.then(() => this.locks.get(sandboxId) === settled && this.locks.delete(sandboxId));
    return result;
  }

  private async find(sandboxId: string): Promise<ListEntry | null> {
    const found = await this.withId(sandboxId);
    return found.find(({ Networks }) => Networks?.includes(this.settings.networkName)) ?? null;
  }

  private withId(sandboxId: string): Promise<ListEntry[]> {
    return this.engine.list([`${LABEL.managed}=true`, `${LABEL.id}=${sandboxId}`]);
  }

  // -- Asking ----------------------------------------------------------------------------------------------------

  /** Where sandboxes of this engine will call the gateway. */
  listenerRequirements(): GatewayListenerRequirement[] {
    const { grpcEndpoint, gatewayPort, hostGatewayIp, networkName } = this.settings;
    const url = URL.canParse(grpcEndpoint)
      ? new URL(grpcEndpoint)
      : unmet(`invalid Podman gateway callback endpoint '${grpcEndpoint}': not a URL`);
    if (!["host.containers.internal", "host.openshell.internal"].includes(url.hostname)) return [];
    const port = Number(url.port || (url.protocol === "https:" ? 443 : 80));
    if (port !== gatewayPort) {
      unmet(
        `Podman local callback endpoint '${grpcEndpoint}' uses port ${port}, but the gateway primary listener uses ` +
          `port ${gatewayPort}; configure grpc_endpoint with the gateway primary listener port`,
      );
    }
    if (process.platform !== "linux") {
      return [
        {
          reason: "Podman machine callback forwarding terminates on gateway loopback",
          loopback_interface: {},
        },
      ];
    }
    const { rootless, rootlessNetworkCmd, bridgeAddress } = this.host;
    if (rootless) {
      if (rootlessNetworkCmd !== "pasta") {
        unmet(
          `Podman rootless network helper '${rootlessNetworkCmd || "<missing>"}' does not support direct local gateway ` +
            "callbacks; configure pasta or use an explicitly remote grpc_endpoint",
        );
      }
      if (!hostGatewayIp) {
        const reason = "Podman rootless pasta callback uses the host default-route interface";
        return [{ reason, default_route_interface: {} }];
      }
    }
    const address =
      hostGatewayIp ||
      (bridgeAddress ??
        unmet(
          `Podman network '${networkName}' did not report a host bridge gateway address for local callback alias '${url.hostname}'`,
        ));
    if (isIP(address) === 0)
      unmet(`Podman callback gateway address '${address}' is invalid: invalid IP address syntax`);
    const exact = isIP(address) === 6 ? `[${address}]:${port}` : `${address}:${port}`;
    return [{ reason: `Podman network '${networkName}' host gateway`, exact_bind_address: exact }];
  }

  /** @throws RpcError with the code and message that CreateSandbox would have. */
  async validate(sandbox: Sandbox): Promise<DriverConfig> {
    const template = sandbox.spec?.template ?? null;
    const config = readDriverConfig(template?.driver_config ?? null);
    checkQuantities(template?.resources ?? null);
    gpuDevices(sandbox, config, false);
    checkMounts(config.mounts, this.settings.enableBindMounts);
    for (const { type, source } of config.mounts) if (type === "volume") await this.checkVolume(source);
    return config;
  }

  private async checkVolume(name: string): Promise<void> {
    interface VolumeInspect {
      Driver?: string;
      Options?: Record<string, string> | null;
    }
    const volume = await this.engine.get<VolumeInspect>(`/volumes/${name}/json`).catch((error: unknown) => {
      if (isGone(error)) unmet(`podman volume '${name}' does not exist`);
      throw error;
    });
    const local = !volume.Driver || volume.Driver === "local";
    const options = (volume.Options?.o ?? "").split(",").map((option) => option.trim().toLowerCase());
    if (local && !this.settings.enableBindMounts && (options.includes("bind") || options.includes("rbind"))) {
      unmet(
        `podman volume '${name}' is backed by a host bind mount and requires enable_bind_mounts = true in ` +
          "[openshell.drivers.podman]",
      );
    }
  }

  async get(sandboxId: string): Promise<DriverSandbox> {
    const entry = await this.find(sandboxId);
    if (!entry) throw notFound();
    const sandbox = describe(await this.engine.inspect(entry.Id).catch(goneIsNotFound));
    if (!sandbox) throw notFound();
    return sandbox;
  }

  async list(): Promise<DriverSandbox[]> {
    const slots = new Slots(16);
    const described = (await this.watch.ours()).map(async (entry) => {
      const found = await slots.run(() => this.engine.inspect(entry.Id).catch((error: unknown) => error));
      if (isGone(found)) return null;
      if (!(found instanceof Error)) return describe(found as Inspect);
      return unsure(identity(entry.Labels) as Identity, { Id: entry.Id, Name: entry.Names[0] ?? "" }, found);
    });
    const sandboxes = (await Promise.all(described)).filter((sandbox) => sandbox !== null);
    const key = ({ name, id }: DriverSandbox): string => `${name}\0${id}`;
    return sandboxes.toSorted((a, b) => (key(a) < key(b) ? -1 : 1));
  }

  // -- Creating --------------------------------------------------------------------------------------------------

  async create(sandbox: Sandbox): Promise<void> {
    if (!sandbox.name) unmet("sandbox name is required");
    if (!sandbox.id) unmet("sandbox id is required");
    checkName(containerName(sandbox), (message) => unmet(`invalid input: ${message}`));
    if (this.creating.has(sandbox.id)) throw alreadyExists();
    const abort = new AbortController();
    const settled = this.createOnce(sandbox, abort.signal).catch((error: unknown) => {
      throw abort.signal.aborted ? new RpcError(Code.ABORTED, "sandbox creation was cancelled") : error;
    });
    this.creating.set(sandbox.id, { abort, settled: settled.catch(() => {}) });
    await settled.finally(() => this.creating.delete(sandbox.id));
  }

  private async createOnce(sandbox: Sandbox, signal: AbortSignal): Promise<void> {
    const config = await this.validate(sandbox);
    await this.exclusively(sandbox.id, async () => {
      if ((await this.withId(sandbox.id)).length > 0) throw alreadyExists();
      await this.build(sandbox, config, signal);
    });
  }

  /** Makes everything of a sandbox, or nothing. */
  private async build(sandbox: Sandbox, config: DriverConfig, signal: AbortSignal): Promise<void> {
    const { engine, settings } = this;
    const undo: (() => Promise<unknown>)[] = [];
    try {
      signal.throwIfAborted();
      log("info", "Creating sandbox container", {
        sandbox_id: sandbox.id,
        container: containerName(sandbox),
      });
      const image = await this.prepareImages(sandbox, config, signal);
      undo.push(() => engine.discard(`/volumes/${volumeName(sandbox.id)}`));
      await this.createVolume(sandbox.id, undo);
      const token = sandbox.spec?.sandbox_token.trim() ?? "";
      if (token) await this.createSecret(tokenSecret(sandbox.id), token, undo);
      if (settings.proxyAuthFile) {
        await this.createSecret(proxySecret(sandbox.id), readProxyCredential(settings.proxyAuthFile), undo);
      }
      signal.throwIfAborted();
      const devices = gpuDevices(sandbox, config, true);
      const body = containerSpec(settings, this.host.bridgeAddress, {
        sandbox,
        config,
        devices,
        image,
        withToken: token !== "",
      });
      const text = await engine.call("POST", "/containers/create", { body });
      const { Id } = JSON.parse(text) as { Id: string };
      undo.push(() => engine.discard(`/containers/${Id}?force=true&volumes=true&timeout=0`));
      signal.throwIfAborted();
      await engine.call("POST", `/containers/${Id}/start`);
      log("info", "Sandbox container started", { sandbox_id: sandbox.id, container: Id.slice(0, 12) });
    } catch (error) {
      log("warn", "Failed to create sandbox; cleaning up", {
        sandbox_id: sandbox.id,
        error: messageOf(error),
      });
      for (const step of undo.toReversed()) {
        await step().catch((left: unknown) =>
          log("warn", "Failed to clean up", { sandbox_id: sandbox.id, error: messageOf(left) }),
        );
      }
      if (isDuplicate(error)) throw alreadyExists();
      // Whatever the engine could not find here, it was not the sandbox.
      if (error instanceof EngineError) throw new RpcError(Code.INTERNAL, error.message);
      throw error;
    }
  }

  private async prepareImages(
    sandbox: Sandbox,
    config: DriverConfig,
    signal: AbortSignal,
  ): Promise<ContainerInput["image"]> {
    const { engine, settings } = this;
    const reference = sandbox.spec?.template?.image || settings.sandboxImage;
    if (!reference) {
      unmet(
        "no sandbox image configured: set default_image in [openshell.drivers.podman] or provide an image in the " +
          "sandbox template",
      );
    }
    const mounted = config.mounts.filter(({ type }) => type === "image").map(({ source }) => source);
    await Promise.all([
      engine.pull(settings.supervisorImage, supervisorPullPolicy(settings.supervisorImage), signal),
      ...[reference, ...mounted].map((image) => engine.pull(image, settings.pullPolicy, signal)),
    ]);
    interface ImageInspect {
      Id?: string;
      Config?: { User?: string } | null;
    }
    const { Id, Config } = await engine.get<ImageInspect>(`/images/${encodeURIComponent(reference)}/json`);
    if (!Id) return unmet(`podman image '${reference}' inspection did not return an immutable image ID`);
    return { reference, id: Id, user: Config?.User ?? "" };
  }

  /** A volume that is there already belongs to a container (then the engine keeps it), or to a sandbox long dead. */
  private async createVolume(sandboxId: string, undo: (() => Promise<unknown>)[]): Promise<void> {
    const name = volumeName(sandboxId);
    const make = (): Promise<string> => this.engine.call("POST", "/volumes/create", { body: { Name: name } });
    await make().catch(async (error: unknown) => {
      if (!isDuplicate(error)) throw error;
      log("warn", "Replacing the volume of a sandbox that is gone", { volume: name });
      await this.engine.discard(`/volumes/${name}`).catch((inUse: unknown) => {
        undo.length = 0;
        throw inUse;
      });
      await make();
    });
  }

  private async createSecret(name: string, value: string, undo: (() => Promise<unknown>)[]): Promise<void> {
    undo.push(() => this.engine.discard(`/secrets/${name}`));
    const make = (): Promise<string> =>
      this.engine.call("POST", `/secrets/create?name=${encodeURIComponent(name)}`, { raw: `${value}\n` });
    await make().catch(async (error: unknown) => {
      if (!isDuplicate(error)) throw error;
      await this.engine.discard(`/secrets/${name}`);
      await make();
    });
  }

  // -- Stopping and starting -------------------------------------------------------------------------------------

  stop(sandboxId: string): Promise<void> {
    return this.exclusively(sandboxId, async () => {
      const entry = await this.find(sandboxId);
      if (!entry) throw notFound();
      if (["created", "configured", "initialized", "exited", "stopped"].includes(entry.State)) return;
      log("info", "Stopping sandbox container", { sandbox_id: sandboxId, container: entry.Id.slice(0, 12) });
      // Podman refuses to stop a paused container, and a frozen process cannot act on a signal.
      if (entry.State === "paused")
        await this.engine.call("POST", `/containers/${entry.Id}/unpause`).catch(goneIsNotFound);
      const { stopTimeout } = this.settings;
      const timeoutMs = (stopTimeout + 10) * 1000;
      await this.engine
        .call("POST", `/containers/${entry.Id}/stop?timeout=${stopTimeout}`, { timeoutMs })
        .catch(goneIsNotFound);
      const container = await this.waitUntilStopped(entry.Id, sandboxId);
      // Before the answer: the gateway may start the sandbox as soon as it has it, and must not see this end then.
      await this.watch.stopped(container, sandboxId);
    });
  }

  /** Podman may answer a stop before its own inspect agrees. */
  private async waitUntilStopped(containerId: string, sandboxId: string): Promise<Inspect> {
    const seconds = this.settings.stopTimeout + 5;
    const deadline = Date.now() + seconds * 1000;
    for (;;) {
      const container = await this.engine.inspect(containerId).catch(goneIsNotFound);
      if (hasExited(container)) return container;
      if (Date.now() > deadline) {
        throw new RpcError(
          Code.INTERNAL,
          `container ${containerId} for sandbox ${sandboxId} did not finish stopping within ${seconds}s ` +
            `(last state: ${container.State.Status})`,
        );
      }
      await Bun.sleep(20);
    }
  }

  start(sandboxId: string): Promise<void> {
    return this.exclusively(sandboxId, async () => {
      const entry = await this.find(sandboxId);
      if (!entry) throw notFound();
      if (entry.State === "running") return;
      log("info", "Starting sandbox container", { sandbox_id: sandboxId, container: entry.Id.slice(0, 12) });
      if (entry.State === "paused") {
        await this.engine.call("POST", `/containers/${entry.Id}/unpause`).catch(goneIsNotFound);
        return;
      }
      const before =
        entry.State === "stopping"
          ? await this.waitUntilStopped(entry.Id, sandboxId)
          : await this.engine.inspect(entry.Id).catch(goneIsNotFound);
      this.watch.restarting(before, sandboxId);
      await this.engine.call("POST", `/containers/${entry.Id}/start`).catch((error: unknown) => {
        this.watch.notRestarted(sandboxId);
        return goneIsNotFound(error);
      });
    });
  }

  // -- Deleting --------------------------------------------------------------------------------------------------

  async delete(sandboxId: string): Promise<boolean> {
    const creating = this.creating.get(sandboxId);
    creating?.abort.abort();
    await creating?.settled;
    return this.exclusively(sandboxId, async () => {
      const entry = await this.find(sandboxId);
      if (entry) {
        log("info", "Deleting sandbox container", {
          sandbox_id: sandboxId,
          container: entry.Id.slice(0, 12),
        });
        const timeout = this.settings.stopTimeout;
        const timeoutMs = timeout * 1000 + API_TIMEOUT_MS;
        const path = `/containers/${entry.Id}?force=true&volumes=true&timeout=${timeout}`;
        const existed = await this.engine.call("DELETE", path, { timeoutMs }).then(
          () => true,
          (error: unknown) => {
            if (!isGone(error)) throw error;
            return false;
          },
        );
        await this.clean(sandboxId);
        await this.watch.removed(entry.Id, sandboxId);
        return existed;
      }
      if ((await this.withId(sandboxId)).length === 0) await this.clean(sandboxId);
      if (creating) await this.watch.cancelled(sandboxId);
      return creating !== undefined;
    });
  }

  /** Removes what a sandbox has beside its container. */
  private async clean(sandboxId: string): Promise<void> {
    const paths = [
      `/volumes/${volumeName(sandboxId)}`,
      ...secretNames(sandboxId).map((name) => `/secrets/${name}`),
    ];
    const results = await Promise.allSettled(paths.map((path) => this.engine.discard(path)));
    for (const [index, result] of results.entries()) {
      if (result.status === "rejected") {
        log("warn", "Failed to remove", { what: paths[index], error: messageOf(result.reason) });
      }
    }
  }

  /** Cleans up after a container that is gone, whoever removed it, unless its sandbox has another one by now. */
  private async sweep(sandboxId: string): Promise<void> {
    await this.exclusively(sandboxId, async () => {
      if ((await this.withId(sandboxId)).length === 0) await this.clean(sandboxId);
    }).catch((error: unknown) =>
      log("warn", "Failed to clean up after a container", { sandbox_id: sandboxId, error: messageOf(error) }),
    );
  }
}

function goneIsNotFound(error: unknown): never {
  throw isGone(error) ? notFound() : error;
}

// ---------------------------------------------------------------------------------------------------------------
// gRPC
// ---------------------------------------------------------------------------------------------------------------

/** Calls under way, so that the end can wait for them. */
let inFlight = 0;
let draining = false;

function failure(error: unknown): Partial<ServiceError> {
  if (error instanceof RpcError) return { code: error.code as number, details: error.message };
  if (error instanceof EngineError) {
    const { code, message } =
      error.status === 404
        ? notFound()
        : error.status === 409
          ? alreadyExists()
          : { code: Code.INTERNAL, message: error.message };
    return { code: code as number, details: message };
  }
  log("error", "unexpected failure", { error: error instanceof Error ? error.stack : String(error) });
  return { code: Code.INTERNAL as number, details: messageOf(error) };
}

function answering<Request, Response>(work: (request: Request) => Response | Promise<Response>) {
  return async (call: ServerUnaryCall<Request, Response>, done: sendUnaryData<Response>): Promise<void> => {
    inFlight++;
    try {
      if (draining) throw new RpcError(Code.UNAVAILABLE, "driver is shutting down");
      const response = await work(call.request);
      done(null, response);
    } catch (error) {
      done(failure(error));
    } finally {
      inFlight--;
    }
  };
}

const requireId = ({ sandbox_id }: { sandbox_id: string }): string =>
  sandbox_id || refuse(Code.INVALID_ARGUMENT, "sandbox_id is required");
const requireSandbox = ({ sandbox }: { sandbox: Sandbox | null }): Sandbox =>
  sandbox ?? refuse(Code.INVALID_ARGUMENT, "sandbox is required");

async function serveWatch(
  driver: Driver,
  call: ServerWritableStream<WatchRequest, WatchSandboxesEvent>,
): Promise<void> {
  const watcher: Watcher = {
    send: (event) => void call.write(event),
    fail: (error) => call.emit("error", failure(error)),
  };
  call.on("cancelled", () => driver.watch.remove(watcher));
  try {
    if (draining) throw new RpcError(Code.UNAVAILABLE, "driver is shutting down");
    await driver.watch.subscribe();
    const { Metadata } = await grpcLibrary;
    // A gateway awaits the headers before it listens, and there may be nothing to send for long.
    call.sendMetadata(new Metadata());
    await driver.watch.add(watcher);
  } catch (error) {
    driver.watch.remove(watcher);
    call.emit("error", failure(error));
  }
}

function handlers(driver: Driver, settings: Settings): ComputeDriverHandlers {
  return {
    GetCapabilities: answering(() => ({
      driver_name: "podman",
      driver_version: VERSION,
      default_image: settings.sandboxImage,
      gateway_manages_lifecycle: true,
    })),
    GetGatewayListenerRequirements: answering(() => ({ requirements: driver.listenerRequirements() })),
    ValidateSandboxCreate: answering(async (request) => {
      await driver.validate(requireSandbox(request));
      return {};
    }),
    GetSandbox: answering(async (request) => ({ sandbox: await driver.get(requireId(request)) })),
    ListSandboxes: answering(async () => ({ sandboxes: await driver.list() })),
    CreateSandbox: answering(async (request) => {
      await driver.create(requireSandbox(request));
      return {};
    }),
    StopSandbox: answering(async (request) => {
      await driver.stop(requireId(request));
      return {};
    }),
    StartSandbox: answering(async (request) => {
      await driver.start(requireId(request));
      return {};
    }),
    DeleteSandbox: answering(async (request) => ({ deleted: await driver.delete(requireId(request)) })),
    WatchSandboxes: (call) => void serveWatch(driver, call),
    EnsureWorkspace: answering(() => ({})),
    DeleteWorkspace: answering(() => ({})),
  };
}

// ---------------------------------------------------------------------------------------------------------------
// Start and end
// ---------------------------------------------------------------------------------------------------------------

/** Makes a private place for the socket. @throws StartError if somebody else's file or folder is there. */
function prepareSocket(path: string): void {
  const parent = dirname(path);
  const uid = process.geteuid?.();
  const longest = process.platform === "linux" ? 107 : 103;
  if (Buffer.byteLength(path) > longest) {
    throw new StartError(
      `bind driver socket ${path}: path must be shorter than SUN_LEN (${longest + 1} bytes)`,
    );
  }
  try {
    mkdirSync(parent, { recursive: true });
  } catch (error) {
    throw new StartError(`create socket directory ${parent}: ${messageOf(error)}`);
  }
  const folder = lstatSync(parent);
  if (!folder.isDirectory()) {
    throw new StartError(`driver socket parent '${parent}' must be a directory, not a symlink`);
  }
  if (folder.uid !== uid) {
    throw new StartError(`driver socket parent '${parent}' is owned by uid ${folder.uid}, expected ${uid}`);
  }
  chmodSync(parent, 0o700);
  const there = lstatSync(path, { throwIfNoEntry: false });
  if (!there) return;
  if (!there.isSocket() || there.uid !== uid) {
    throw new StartError(`driver socket path '${path}' exists but is not an owned Unix socket`);
  }
  unlinkSync(path);
}

/** Tells a file from another one that took its place, which may have its inode number. */
function identityOf(path: string): string | null {
  const file = lstatSync(path, { throwIfNoEntry: false });
  return file ? `${file.ino} ${file.birthtimeMs}` : null;
}

async function connect(settings: Settings): Promise<Engine> {
  const engine = new Engine(settings.podmanSocket ?? (await detectPodman()));
  const [retries, pauseMs] = [5, 2_000];
  for (let attempt = 1; ; attempt++) {
    try {
      await engine.ping();
      return engine;
    } catch (error) {
      if (attempt > retries) throw error;
      log("warn", "Podman socket not ready, retrying", {
        attempt,
        max_retries: retries,
        error: messageOf(error),
      });
      await Bun.sleep(pauseMs);
    }
  }
}

async function prepareEngine(settings: Settings, engine: Engine): Promise<Host> {
  const [info] = await Promise.all([
    engine.get<Info>("/info").catch((error: unknown) => {
      throw new StartError(`connection error: failed to query Podman system info: ${messageOf(error)}`);
    }),
    engine
      .call("POST", "/networks/create", {
        body: { name: settings.networkName, driver: "bridge", dns_enabled: true },
      })
      .catch((error: unknown) => {
        if (!isDuplicate(error)) throw error;
      }),
  ]);
  const { cgroupVersion, security, rootlessNetworkCmd = "", networkBackend = "" } = info.host;
  log("info", "Connected to Podman", {
    cgroup_version: cgroupVersion,
    network_backend: networkBackend,
    rootless: security.rootless,
  });
  if (cgroupVersion !== "v2")
    log("warn", "cgroups v2 is not in use; limits may not be enforced", { cgroup_version: cgroupVersion });
  const { subnets } = await engine.get<{ subnets?: { gateway?: string }[] | null }>(
    `/networks/${settings.networkName}/json`,
  );
  return {
    rootless: security.rootless,
    rootlessNetworkCmd: rootlessNetworkCmd.trim(),
    bridgeAddress: security.rootless ? null : (subnets?.[0]?.gateway ?? null),
  };
}

// Loading gRPC takes longer than all the rest of the start, so it begins before the engine is asked.
const grpcLibrary = import("@grpc/grpc-js");

async function main(): Promise<void> {
  const argv = process.argv.slice(2);
  if (argv.includes("--version") || argv.includes("-V")) {
    console.log(`openshell-driver-podman ${VERSION}`);
    return;
  }
  if (argv.includes("--help") || argv.includes("-h")) {
    for (const flag of FLAGS)
      console.log(
        `  --${flag.name.padEnd(36)} ${flag.env ?? ""} ${flag.default ? `[default: ${flag.default}]` : ""}`,
      );
    return;
  }
  const settings = readSettings(argv, process.env);
  const wanted =
    (process.env.RUST_LOG || settings.logLevel).toLowerCase().split(",").at(-1)?.split("=").at(-1) ?? "info";
  logLevel = LEVELS.includes(wanted) ? LEVELS.indexOf(wanted) : LEVELS.indexOf("info");
  settings.grpcEndpoint ||= `${settings.tls ? "https" : "http"}://host.containers.internal:${settings.gatewayPort}`;

  const engine = await connect(settings);
  const driver = new Driver(settings, engine, await prepareEngine(settings, engine));
  await driver.watch.subscribe();
  const { computeDriver } = await import("../proto/contract.ts");
  const { Server, ServerCredentials } = await grpcLibrary;
  const server = new Server();
  server.addService(computeDriver().ComputeDriver.service, handlers(driver, settings));

  const socket = settings.bindSocket && resolve(settings.bindSocket);
  if (socket) prepareSocket(socket);
  // Bound under another name and renamed once it listens: whoever sees the socket can connect to it.
  const bound = socket && join(dirname(socket), `.${process.pid}`);
  const before = process.umask(0o177);
  const address = bound ? `unix:${bound}` : settings.bindAddress;
  await new Promise<void>((ready, fail) => {
    server.bindAsync(address, ServerCredentials.createInsecure(), (error) =>
      error ? fail(new StartError(`bind driver socket ${socket ?? address}: ${error.message}`)) : ready(),
    );
  });
  process.umask(before);
  if (bound) renameSync(bound, socket);
  const ours = socket && identityOf(socket);
  log("info", "Starting Podman compute driver", socket ? { socket } : { address });

  const end = async (): Promise<void> => {
    if (draining) process.exit(1);
    draining = true;
    log("info", "Received shutdown signal, draining in-flight requests");
    const closed = new Promise<void>((done) => server.tryShutdown(() => done()));
    driver.watch.end();
    const deadline = Date.now() + (settings.stopTimeout + 35) * 1000;
    const waiting = (): boolean => inFlight > 0 && Date.now() < deadline;
    while (waiting()) await Bun.sleep(5);
    // A client may keep its connection for ever; its calls have been answered.
    await Promise.race([closed, Bun.sleep(200)]);
    server.forceShutdown();
    // Another driver may have taken the path over; then it is not ours to remove.
    if (socket && identityOf(socket) === ours) unlinkSync(socket);
    process.exit(0);
  };
  process.on("SIGTERM", () => void end());
  process.on("SIGINT", () => void end());
}

try {
  await main();
} catch (error) {
  const known = error instanceof StartError || error instanceof EngineError;
  process.stderr.write(
    `${error instanceof StartError && error.exitCode === 2 ? "error" : "Error"}: ${known ? error.message : (error as Error).stack}\n`,
  );
  process.exit(error instanceof StartError ? error.exitCode : 1);
}
