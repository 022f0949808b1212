// SPDX-License-Identifier: Apache-2.0

/** What the driver was told to do: flag, then environment variable, then default; checked before anything starts. */
import { isIP } from "node:net";
import { parseArgs } from "node:util";
import { checkName } from "./names.ts";

/** Ends the program: said to the operator in one line, with exit code 2 for a command line that makes no sense. */
export class StartError extends Error {
  constructor(
    message: string,
    readonly exitCode: 1 | 2 = 1,
  ) {
    super(message);
  }
}

// Flags

interface Flag {
  env?: string;
  kind?: "list" | "switch" | "yes-no" | "port" | "seconds" | "integer" | "pull-policy" | "address";
  default?: string;
}

/** Every flag of the first-party driver, in its order. */
const FLAGS = {
  "bind-socket": { env: "OPENSHELL_COMPUTE_DRIVER_SOCKET" },
  "bind-address": { env: "OPENSHELL_COMPUTE_DRIVER_BIND", kind: "address", default: "127.0.0.1:50061" },
  "log-level": { env: "OPENSHELL_LOG_LEVEL", default: "info" },
  "otlp-endpoint": { env: "OPENSHELL_OTLP_ENDPOINT" },
  "podman-socket": { env: "OPENSHELL_PODMAN_SOCKET" },
  "sandbox-image": { env: "OPENSHELL_SANDBOX_IMAGE" },
  "sandbox-image-pull-policy": {
    env: "OPENSHELL_SANDBOX_IMAGE_PULL_POLICY",
    kind: "pull-policy",
    default: "missing",
  },
  "grpc-endpoint": { env: "OPENSHELL_GRPC_ENDPOINT" },
  "gateway-port": { env: "OPENSHELL_GATEWAY_PORT", kind: "port", default: "17670" },
  "host-gateway-ip": { env: "OPENSHELL_PODMAN_HOST_GATEWAY_IP" },
  "sandbox-ssh-socket-path": { env: "OPENSHELL_SANDBOX_SSH_SOCKET_PATH", default: "/run/openshell/ssh.sock" },
  "network-name": { env: "OPENSHELL_NETWORK_NAME", default: "openshell" },
  "stop-timeout": { env: "OPENSHELL_STOP_TIMEOUT", kind: "seconds", default: "45" },
  "sandbox-pids-limit": { env: "OPENSHELL_SANDBOX_PIDS_LIMIT", kind: "integer", default: "2048" },
  "supervisor-image": {
    env: "OPENSHELL_SUPERVISOR_IMAGE",
    default: "ghcr.io/nvidia/openshell/supervisor:dev",
  },
  "podman-tls-ca": { env: "OPENSHELL_PODMAN_TLS_CA" },
  "podman-tls-cert": { env: "OPENSHELL_PODMAN_TLS_CERT" },
  "podman-tls-key": { env: "OPENSHELL_PODMAN_TLS_KEY" },
  "sandbox-https-proxy": { env: "OPENSHELL_SANDBOX_HTTPS_PROXY" },
  "sandbox-no-proxy": { env: "OPENSHELL_SANDBOX_NO_PROXY" },
  "sandbox-proxy-auth-file": { env: "OPENSHELL_SANDBOX_PROXY_AUTH_FILE" },
  "sandbox-proxy-auth-allow-insecure": {
    env: "OPENSHELL_SANDBOX_PROXY_AUTH_ALLOW_INSECURE",
    kind: "yes-no",
  },
  "sandbox-proxy-connect-by-hostname": {
    env: "OPENSHELL_SANDBOX_PROXY_CONNECT_BY_HOSTNAME",
    kind: "yes-no",
  },
  userns: { env: "OPENSHELL_PODMAN_USERNS" },
  uidmap: { kind: "list" },
  gidmap: { kind: "list" },
  "enable-bind-mounts": { env: "OPENSHELL_ENABLE_BIND_MOUNTS", kind: "switch" },
} as const satisfies Record<string, Flag>;

type FlagName = keyof typeof FLAGS;

/** The value of a flag, if it was given or has a default. */
type Text = (name: FlagName) => string | undefined;

const entries = Object.entries(FLAGS) as [FlagName, Flag][];

export const HELP = entries
  .map(
    ([name, flag]) =>
      `  --${name.padEnd(36)} ${flag.env ?? ""} ${flag.default ? `[default: ${flag.default}]` : ""}`,
  )
  .join("\n");

/** What the value of a flag must look like. */
interface Check {
  form: RegExp;
  most?: number;
  expected: string;
}

const ANYTHING: Check = { form: /^/, expected: "anything" };

const CHECKS: Partial<Record<NonNullable<Flag["kind"]>, Check>> = {
  port: { form: /^\d+$/, most: 65_535, expected: "a port number" },
  seconds: { form: /^\d+$/, most: 2 ** 32 - 1, expected: "a number of seconds" },
  integer: { form: /^-?\d+$/, expected: "an integer" },
  "yes-no": { form: /^(true|false)$/, expected: "true or false" },
  address: { form: /^(\d+\.\d+\.\d+\.\d+|\[[0-9a-fA-F:]+\]):\d+$/, expected: "ADDRESS:PORT" },
  "pull-policy": {
    form: /^(always|missing|never|newer)$/i,
    expected: "one of: always, missing, never, newer",
  },
};

/** @throws StartError with exit code 2 for an unknown or repeated flag and a malformed value */
function readFlags(argv: string[], env: NodeJS.ProcessEnv): Text {
  const { values, positionals } = parseArgs({
    args: argv,
    options: Object.fromEntries(
      entries.map(([name, { kind }]) => [
        name,
        { type: kind === "switch" ? ("boolean" as const) : ("string" as const), multiple: true },
      ]),
    ),
    strict: false,
    allowPositionals: true,
  });
  const unknown = Object.keys(values).find((name) => !(name in FLAGS));
  const unexpected = unknown ? `--${unknown}` : positionals[0];
  if (unexpected !== undefined) throw new StartError(`unexpected argument '${unexpected}' found`, 2);
  const found = new Map<FlagName, string>();
  for (const [name, { env: variable, kind, default: otherwise }] of entries) {
    const given = (values[name] ?? []) as (string | boolean)[];
    if (given.length > 1 && kind !== "list") {
      throw new StartError(`the argument '--${name}' cannot be used multiple times`, 2);
    }
    if (given[0] === true && kind !== "switch") {
      throw new StartError(`a value is required for '--${name}' but none was supplied`, 2);
    }
    const value = given[0] ?? (variable && env[variable]) ?? otherwise;
    if (value === undefined) continue;
    const { form, most = Infinity, expected } = (kind && CHECKS[kind]) ?? ANYTHING;
    if (!form.test(String(value)) || Number(value) > most) {
      throw new StartError(`invalid value '${value}' for '--${name}': expected ${expected}`, 2);
    }
    found.set(name, String(value));
  }
  return (name) => found.get(name);
}

// Settings

export interface Settings {
  bindSocket?: string;
  bindAddress: string;
  logLevel: string;
  podmanSocket: string;
  sandboxImage: string;
  pullPolicy: string;
  /** Where sandboxes call the gateway. */
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
  enableBindMounts: boolean;
  /** Whether supervisors may report to anybody: not unless told to. */
  telemetry: boolean;
}

/** @throws StartError */
export function readSettings(argv: string[], env: NodeJS.ProcessEnv): Settings {
  const text = readFlags(argv, env);
  const tls = readTls(text);
  const gatewayPort = Number(text("gateway-port"));
  const settings: Settings = {
    bindSocket: text("bind-socket"),
    bindAddress: text("bind-address")!,
    logLevel: env.RUST_LOG || text("log-level")!,
    podmanSocket:
      text("podman-socket") ??
      refuse("no Podman API socket: give --podman-socket or OPENSHELL_PODMAN_SOCKET"),
    sandboxImage: text("sandbox-image") ?? "",
    pullPolicy: text("sandbox-image-pull-policy")!.toLowerCase(),
    grpcEndpoint:
      text("grpc-endpoint") || `${tls ? "https" : "http"}://host.containers.internal:${gatewayPort}`,
    gatewayPort,
    // Podman machines on macOS answer on this address of gvproxy, whatever their version.
    hostGatewayIp: (
      text("host-gateway-ip") ?? (process.platform === "darwin" ? "192.168.127.254" : "")
    ).trim(),
    sshSocketPath: text("sandbox-ssh-socket-path")!,
    networkName: text("network-name")!,
    stopTimeout: Number(text("stop-timeout")),
    pidsLimit: Number(text("sandbox-pids-limit")),
    supervisorImage: text("supervisor-image")!,
    tls,
    enableBindMounts: ["true", "1"].includes(text("enable-bind-mounts") ?? ""),
    telemetry: /^\s*(1|true|yes|on)\s*$/i.test(env.OPENSHELL_TELEMETRY_ENABLED ?? ""),
  };
  if (settings.pidsLimit < 0) refuse("sandbox_pids_limit must be zero or greater");
  if (settings.hostGatewayIp && isIP(settings.hostGatewayIp) === 0) {
    refuse(`invalid host_gateway_ip value '${settings.hostGatewayIp}': invalid IP address syntax`);
  }
  checkName(settings.networkName, refuse);
  refuseWhatIsMissing(text);
  return settings;
}

/** What the first-party driver can do and this one cannot is said plainly, never pretended. */
function refuseWhatIsMissing(text: Text): void {
  const proxy = text("sandbox-https-proxy");
  for (const name of PROXY_FLAGS) {
    if (text(name) === undefined || proxy !== undefined) continue;
    const key = name.replace("sandbox-", "").replaceAll("-", "_");
    refuse(`${key} is set but no https_proxy is configured`);
  }
  if (proxy !== undefined)
    refuse("https_proxy is not served by this driver; leave --sandbox-https-proxy out");
  const userns = text("userns");
  if (userns !== undefined && userns.toLowerCase() !== "host") {
    refuse(`userns mode '${userns}' is not served by this driver; leave --userns out, or set 'host'`);
  }
  if (text("uidmap") ?? text("gidmap")) refuse(`uidmap/gidmap are only valid with userns = "private"`);
}

const PROXY_FLAGS = [
  "sandbox-no-proxy",
  "sandbox-proxy-auth-file",
  "sandbox-proxy-auth-allow-insecure",
  "sandbox-proxy-connect-by-hostname",
] as const;

function refuse(message: string): never {
  throw new StartError(`invalid input: ${message}`);
}

function readTls(text: Text): Settings["tls"] {
  const [ca, cert, key] = [text("podman-tls-ca"), text("podman-tls-cert"), text("podman-tls-key")];
  if (ca && cert && key) return { ca, cert, key };
  const missing = [
    !ca && "--podman-tls-ca / OPENSHELL_PODMAN_TLS_CA",
    !cert && "--podman-tls-cert / OPENSHELL_PODMAN_TLS_CERT",
    !key && "--podman-tls-key / OPENSHELL_PODMAN_TLS_KEY",
  ].filter(Boolean);
  if (missing.length === 3) return undefined;
  return refuse(
    `Partial TLS configuration: all three TLS paths must be provided together. Missing: ${missing.join(", ")}`,
  );
}
