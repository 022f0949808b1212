// SPDX-License-Identifier: Apache-2.0

/**
 * What the gateway was told to do: flag, then environment variable, then TOML file, then default. The checks come in the
 * real program's order, so that of two mistakes the same one is reported.
 */
import { existsSync, mkdirSync, statSync } from "node:fs";
import { isIP } from "node:net";
import { join } from "node:path";
import { Failure, UsageError } from "./failure.ts";
import { loadConfigFile, parseAddress, type ConfigFile, type GatewaySection } from "./toml.ts";

export interface Address {
  host: string;
  port: number;
}

export interface Settings {
  bind: Address;
  health?: Address;
  logLevel: string;
  databaseUrl: string;
  /** The configured name, normalised. */
  driver: string;
  /** From --compute-driver-socket, else from the driver's own table; empty when neither names one. */
  socketPath: string;
  tls?: { certPath: string; keyPath: string; clientCaPath?: string };
  mtlsAuth: boolean;
  allowUnauthenticatedUsers: boolean;
  jwt?: {
    signingKeyPath: string;
    publicKeyPath: string;
    kidPath: string;
    gatewayId: string;
    ttlSeconds: number;
  };
  ssh: {
    /** Where clients reach the gateway. */
    host: string;
    port: number;
    scheme: "http" | "https";
    /** 0 is for ever. */
    ttlSeconds: number;
  };
}

/** A day. */
const DEFAULT_SSH_TTL_SECONDS = 86_400;

// Flags

type Kind = "text" | "ip" | "port" | "count" | "bool" | "switch" | "list" | "drivers";

/** One line a flag: its name, its environment variable, what its value is. */
const FLAGS = {
  config: ["OPENSHELL_GATEWAY_CONFIG", "text"],
  "bind-address": ["OPENSHELL_BIND_ADDRESS", "ip"],
  port: ["OPENSHELL_SERVER_PORT", "port"],
  "health-port": ["OPENSHELL_HEALTH_PORT", "port"],
  "metrics-port": ["OPENSHELL_METRICS_PORT", "port"],
  "log-level": ["OPENSHELL_LOG_LEVEL", "text"],
  "tls-cert": ["OPENSHELL_TLS_CERT", "text"],
  "tls-key": ["OPENSHELL_TLS_KEY", "text"],
  "tls-client-ca": ["OPENSHELL_TLS_CLIENT_CA", "text"],
  "db-url": ["OPENSHELL_DB_URL", "text"],
  drivers: ["OPENSHELL_DRIVERS", "drivers"],
  "compute-driver-socket": ["OPENSHELL_COMPUTE_DRIVER_SOCKET", "text"],
  "disable-tls": ["OPENSHELL_DISABLE_TLS", "switch"],
  "enable-mtls-auth": ["OPENSHELL_ENABLE_MTLS_AUTH", "bool"],
  "oidc-issuer": ["OPENSHELL_OIDC_ISSUER", "text"],
  "oidc-audience": ["OPENSHELL_OIDC_AUDIENCE", "text"],
  "oidc-jwks-ttl": ["OPENSHELL_OIDC_JWKS_TTL", "count"],
  "oidc-roles-claim": ["OPENSHELL_OIDC_ROLES_CLAIM", "text"],
  "oidc-admin-role": ["OPENSHELL_OIDC_ADMIN_ROLE", "text"],
  "oidc-user-role": ["OPENSHELL_OIDC_USER_ROLE", "text"],
  "oidc-scopes-claim": ["OPENSHELL_OIDC_SCOPES_CLAIM", "text"],
  "grpc-rate-limit-requests": ["OPENSHELL_GRPC_RATE_LIMIT_REQUESTS", "count"],
  "grpc-rate-limit-window-seconds": ["OPENSHELL_GRPC_RATE_LIMIT_WINDOW_SECONDS", "count"],
  "server-san": ["OPENSHELL_SERVER_SAN", "list"],
  "enable-loopback-service-http": ["OPENSHELL_ENABLE_LOOPBACK_SERVICE_HTTP", "bool"],
} as const satisfies Record<string, readonly [env: string, kind: Kind]>;

export type FlagName = keyof typeof FLAGS;

const ALIASES: Record<string, FlagName> = { driver: "drivers" };
const USAGE = "\nUsage: openshell-gateway [OPTIONS] [COMMAND]\n";

export const HELP = `Fake OpenShell gateway: the real program's flags, environment and files

Usage: openshell-gateway [OPTIONS] [COMMAND]

Commands:
  generate-certs  Write a certificate authority, certificates and token keys into --output-dir DIR

Options (each with its environment variable):
${Object.entries(FLAGS)
  .map(([name, [env]]) => `      --${name.padEnd(32)}[env: ${env}]`)
  .join("\n")}
  -h, --help
  -V, --version

The fake's own setting:
      OPENSHELL_FAKE_DIAL_SECONDS     How long to wait for the driver's socket (default: 30)
`;

/** The values given on the command line or in the environment, checked and in text form; lists in full. */
export class Flags {
  #values = new Map<FlagName, string[]>();

  /** @throws UsageError for whatever the real program's command line parser refuses */
  constructor(argv: string[], env: Record<string, string | undefined>) {
    for (let index = 0; index < argv.length; index++) {
      const argument = argv[index]!;
      const [, written, attached] = /^--([^=]+)(?:=(.*))?$/s.exec(argument) ?? [];
      if (written === undefined && !argument.startsWith("-")) {
        throw new UsageError(`unrecognized subcommand '${argument}'`, USAGE);
      }
      const name = ALIASES[written ?? ""] ?? (written as FlagName);
      if (!(name in FLAGS))
        throw new UsageError(`unexpected argument '${argument.split("=")[0]}' found`, USAGE);
      const repeatable = FLAGS[name][1] === "list" || FLAGS[name][1] === "drivers";
      if (this.#values.has(name) && !repeatable) {
        throw new UsageError(`the argument '${shown(name)}' cannot be used multiple times`, USAGE);
      }
      let value = attached;
      if (FLAGS[name][1] === "switch") {
        if (attached !== undefined) {
          throw new UsageError(
            `unexpected value '${attached}' for '${shown(name)}' found; no more were expected`,
            USAGE,
          );
        }
        value = "true";
      } else if (value === undefined && !argv[index + 1]?.startsWith("-")) {
        value = argv[++index];
      }
      this.#set(name, value ?? "");
    }
    for (const [name, [variable]] of Object.entries(FLAGS) as [FlagName, (typeof FLAGS)[FlagName]][]) {
      const value = env[variable];
      if (value !== undefined && !this.#values.has(name)) this.#set(name, value);
    }
  }

  #set(name: FlagName, value: string): void {
    const kind: Kind = FLAGS[name][1];
    const hint = kind === "bool" || kind === "switch" ? "  [possible values: true, false]\n" : "";
    if (value === "" && kind !== "drivers") {
      throw new UsageError(`a value is required for '${shown(name)}' but none was supplied`, hint);
    }
    const items = kind === "list" || kind === "drivers" ? value.split(",") : [value];
    for (const item of items) {
      const wrong = refusal(kind, item);
      if (wrong === undefined) continue;
      throw new UsageError(`invalid value '${item}' for '${shown(name)}'${wrong && `: ${wrong}`}`, hint);
    }
    const checked = kind === "drivers" ? items.map((item) => normalised(item).name!) : items;
    this.#values.set(name, [...(this.#values.get(name) ?? []), ...checked]);
  }

  given = (name: FlagName) => this.#values.has(name);
  text = (name: FlagName) => this.#values.get(name)?.[0];
  number = (name: FlagName) => (this.given(name) ? Number(this.text(name)) : undefined);
  bool = (name: FlagName) => (this.given(name) ? this.text(name) === "true" : undefined);
  list = (name: FlagName) => this.#values.get(name);
}

/** A flag as messages name it: "--port <PORT>". */
function shown(name: FlagName): string {
  if (FLAGS[name][1] === "switch") return `--${name}`;
  const placeholder = name === "server-san" ? "SERVER_SANS" : name.replaceAll("-", "_").toUpperCase();
  return `--${name} <${placeholder}>`;
}

/** Why `value` is not of its kind: undefined when it is, empty when the list of possible values says enough. */
function refusal(kind: Kind, value: string): string | undefined {
  if (kind === "ip" && !isIP(value)) return "invalid IP address syntax";
  if (kind === "port" || kind === "count") {
    if (!/^\+?\d+$/.test(value)) return "invalid digit found in string";
    if (kind === "port" && Number(value) > 65535) return `${value} is not in 0..=65535`;
  }
  if ((kind === "bool" || kind === "switch") && value !== "true" && value !== "false") return "";
  if (kind === "drivers") return normalised(value).error;
  return undefined;
}

/** A driver's name in its normal form, or what is wrong with it. */
function normalised(value: string): { name?: string; error?: string } {
  const name = value.trim();
  if (name === "") return { error: "compute driver name cannot be empty" };
  if (/^[A-Za-z0-9_-]+$/.test(name)) return { name: name.toLowerCase() };
  return { error: `invalid compute driver name '${name}'. use ASCII letters, digits, '-' or '_'` };
}

// Settings

/** Names that a default build of the real gateway serves itself. */
const IN_TREE = ["kubernetes", "podman", "docker", "vm"];

/**
 * Reads all settings.
 * @throws Failure with the real program's message, or a plain one for what only the real program can do
 */
export function readSettings(flags: Flags, env: Record<string, string | undefined>): Settings {
  const folders = new Folders(env);
  const configPath = flags.text("config") ?? existing(join(folders.config, "gateway.toml"));
  const file = configPath === undefined ? undefined : loadConfigFile(configPath);
  const gateway = file?.gateway ?? {};

  const listed = flags.list("drivers") ?? gateway.compute_drivers ?? [];
  const socket = flags.text("compute-driver-socket");
  if (socket !== undefined) checkSocketFlag(flags);
  const driver = selectDriver(listed);

  const disableTls = flags.bool("disable-tls") ?? gateway.disable_tls ?? false;
  const tls = tlsPaths(flags, gateway, disableTls, folders);
  const jwt = jwtPaths(gateway, folders);
  const databaseUrl = flags.text("db-url") ?? folders.databaseUrl();
  const oidc = flags.given("oidc-issuer") || gateway.oidc !== undefined;

  const mtlsAuth =
    gateway.mtls_auth !== undefined || flags.given("enable-mtls-auth")
      ? (flags.bool("enable-mtls-auth") ?? gateway.mtls_auth?.enabled ?? false)
      : !disableTls && tls.clientCaPath !== undefined && !oidc && ["docker", "podman", "vm"].includes(driver);
  checkTls(tls, disableTls, mtlsAuth, driver);

  const bind = {
    host: flags.text("bind-address") ?? parseAddress(gateway.bind_address ?? "")?.host ?? "127.0.0.1",
    port: flags.number("port") ?? parseAddress(gateway.bind_address ?? "")?.port ?? 17670,
  };
  const health = auxiliary(bind, flags.number("health-port"), gateway.health_bind_address);
  const metrics = auxiliary(bind, flags.number("metrics-port"), gateway.metrics_bind_address);
  checkPorts(bind, health, metrics);
  checkRateLimit(flags, gateway);
  refuseWhatIsMissing(file, { oidc, metrics: metrics !== undefined, inTree: socket === undefined && driver });

  const tableSocket = file?.drivers[driver]?.socket_path;
  return {
    bind,
    health,
    logLevel: env.RUST_LOG || flags.text("log-level") || gateway.log_level || "info",
    databaseUrl,
    driver,
    socketPath: socket ?? (typeof tableSocket === "string" ? tableSocket : ""),
    tls: disableTls ? undefined : { ...tls, certPath: tls.certPath!, keyPath: tls.keyPath! },
    mtlsAuth,
    allowUnauthenticatedUsers: gateway.auth?.allow_unauthenticated_users ?? false,
    jwt,
    ssh: {
      ...bind,
      scheme: disableTls ? "http" : "https",
      ttlSeconds: gateway.ssh_session_ttl_secs ?? DEFAULT_SSH_TTL_SECONDS,
    },
  };
}

/** An inherited socket variable must not pick a driver by itself: a driver and its gateway share that variable's name. */
function checkSocketFlag(flags: Flags): void {
  const drivers = flags.list("drivers");
  if (!drivers) {
    throw new Failure(
      "--compute-driver-socket requires --drivers <name> or OPENSHELL_DRIVERS=<name> to select a compute driver name",
    );
  }
  if (drivers.length !== 1) {
    throw new Failure(
      `--compute-driver-socket requires exactly one compute driver name, got: ${drivers.join(",")}`,
    );
  }
}

function selectDriver(listed: string[]): string {
  if (listed.length === 0) {
    throw Failure.config(
      "no compute driver configured and auto-detection found no suitable installed driver; set --drivers <name> or OPENSHELL_DRIVERS=<name>",
    );
  }
  if (listed.length > 1) {
    throw Failure.config(
      `multiple compute drivers are not supported yet; configured drivers: ${listed.join(",")}`,
    );
  }
  const { name, error } = normalised(listed[0]!);
  if (name === undefined) throw Failure.config(error!);
  return name;
}

interface TlsPaths {
  certPath?: string;
  keyPath?: string;
  clientCaPath?: string;
}

function tlsPaths(flags: Flags, gateway: GatewaySection, disableTls: boolean, folders: Folders): TlsPaths {
  const bundle = disableTls ? undefined : folders.tlsBundle();
  const paths = {
    certPath: flags.text("tls-cert") ?? gateway.tls?.cert_path,
    keyPath: flags.text("tls-key") ?? gateway.tls?.key_path,
    clientCaPath: flags.text("tls-client-ca") ?? gateway.tls?.client_ca_path,
  };
  return Object.values(paths).every((path) => path === undefined) ? { ...bundle } : paths;
}

function checkTls(tls: TlsPaths, disableTls: boolean, mtlsAuth: boolean, driver: string): void {
  if (disableTls && tls.clientCaPath !== undefined) {
    throw new Failure(
      "--disable-tls and --tls-client-ca are mutually exclusive. Client certificate verification requires that TLS be enabled.",
    );
  }
  if (mtlsAuth && disableTls) {
    throw new Failure(
      "mTLS user authentication requires TLS. Remove --disable-tls or disable --enable-mtls-auth.",
    );
  }
  if (mtlsAuth && tls.clientCaPath === undefined) {
    throw new Failure(
      "mTLS user authentication requires --tls-client-ca so client certificates can be verified.",
    );
  }
  if (mtlsAuth && driver === "kubernetes") {
    throw new Failure(
      "mTLS user authentication is not supported with the Kubernetes compute driver. Configure OIDC or a trusted fronting proxy for user authentication.",
    );
  }
  if (disableTls) return;
  for (const [flag, path] of [
    ["--tls-cert", tls.certPath],
    ["--tls-key", tls.keyPath],
  ]) {
    if (!path) throw new Failure(`${flag} is required when TLS is enabled (use --disable-tls to skip)`);
  }
}

function jwtPaths(gateway: GatewaySection, folders: Folders): Settings["jwt"] {
  const bundle = folders.jwtBundle();
  const table = gateway.gateway_jwt;
  if (!table) return bundle && { ...bundle, gatewayId: "openshell", ttlSeconds: 0 };
  return {
    signingKeyPath: table.signing_key_path,
    publicKeyPath: table.public_key_path,
    kidPath: table.kid_path,
    gatewayId: table.gateway_id ?? "openshell",
    ttlSeconds: table.ttl_secs ?? 0,
  };
}

/** A further listener: a port given by flag goes with the main host, one from the file brings its own. */
function auxiliary(
  bind: Address,
  port: number | undefined,
  fromFile: string | undefined,
): Address | undefined {
  if (port !== undefined) return port === 0 ? undefined : { host: bind.host, port };
  return parseAddress(fromFile ?? "");
}

function checkPorts(bind: Address, health: Address | undefined, metrics: Address | undefined): void {
  const differ = (one: string, other: string, port: number) =>
    new Failure(`${one} and ${other} must be different (both set to ${port})`);
  if (health?.port === bind.port) throw differ("--port", "--health-port", bind.port);
  if (metrics?.port === bind.port) throw differ("--port", "--metrics-port", bind.port);
  if (health && health.port === metrics?.port) throw differ("--health-port", "--metrics-port", health.port);
}

function checkRateLimit(flags: Flags, gateway: GatewaySection): void {
  const requests = flags.number("grpc-rate-limit-requests") ?? gateway.grpc_rate_limit_requests;
  const window = flags.number("grpc-rate-limit-window-seconds") ?? gateway.grpc_rate_limit_window_seconds;
  if (requests === 0 || window === 0 || (requests === undefined && window === undefined)) return;
  if (requests === undefined || window === undefined) {
    throw new Failure(
      "gRPC rate limiting requires both --grpc-rate-limit-requests and --grpc-rate-limit-window-seconds (TOML keys grpc_rate_limit_requests and grpc_rate_limit_window_seconds) to be positive; set either value to 0 to disable",
    );
  }
  throw Failure.notInThisFake("gRPC rate limiting");
}

function refuseWhatIsMissing(
  file: ConfigFile | undefined,
  asked: { oidc: boolean; metrics: boolean; inTree: string | false },
): void {
  const gateway = file?.gateway ?? {};
  if (asked.inTree && IN_TREE.includes(asked.inTree)) {
    throw Failure.notInThisFake(
      `in-tree compute driver '${asked.inTree}' (with --drivers ${asked.inTree} --compute-driver-socket PATH it connects to a standalone one)`,
    );
  }
  if (asked.oidc) throw Failure.notInThisFake("OIDC authentication");
  if (asked.metrics) throw Failure.notInThisFake("metrics listener");
  if (gateway.tls?.external_cert_path) throw Failure.notInThisFake("second certificate by server name");
  if (gateway.credential_drivers) throw Failure.notInThisFake("credential drivers");
  if (gateway.interceptors?.length) throw Failure.notInThisFake("interceptors");
  if (gateway.provider_profile_sources?.length) throw Failure.notInThisFake("provider profile sources");
  if (file?.middleware.length) throw Failure.notInThisFake("supervisor middleware");
}

// Folders

/** Where the gateway looks when nobody tells it. */
class Folders {
  readonly config: string;
  readonly state: string;
  #tls: string;

  constructor(env: Record<string, string | undefined>) {
    const home = env.HOME ?? "/";
    this.config = join(env.XDG_CONFIG_HOME || join(home, ".config"), "openshell");
    this.state = join(env.XDG_STATE_HOME || join(home, ".local", "state"), "openshell");
    this.#tls = env.OPENSHELL_LOCAL_TLS_DIR ?? join(this.state, "tls");
  }

  databaseUrl(): string {
    const folder = join(this.state, "gateway");
    mkdirSync(folder, { recursive: true, mode: 0o700 });
    return `sqlite:${join(folder, "openshell.db")}`;
  }

  tlsBundle(): TlsPaths | undefined {
    const [ca, cert, key, ...client] = this.#whole(
      ["ca.crt", "server/tls.crt", "server/tls.key", "client/tls.crt", "client/tls.key"],
      "partial local TLS state in {dir}: expected ca.crt, server/tls.crt, server/tls.key, client/tls.crt, and client/tls.key",
    );
    return client.length ? { certPath: cert, keyPath: key, clientCaPath: ca } : undefined;
  }

  jwtBundle() {
    const [signingKeyPath, publicKeyPath, kidPath] = this.#whole(
      ["jwt/signing.pem", "jwt/public.pem", "jwt/kid"],
      "partial local sandbox JWT state in {dir}: expected jwt/signing.pem, jwt/public.pem, and jwt/kid",
    );
    return signingKeyPath && publicKeyPath && kidPath
      ? { signingKeyPath, publicKeyPath, kidPath }
      : undefined;
  }

  /** All the files or none; some of them is an error. */
  #whole(files: string[], partial: string): string[] {
    const paths = files.map((file) => join(this.#tls, file));
    const present = paths.filter((path) => existsSync(path));
    if (present.length && present.length < paths.length)
      throw new Failure(partial.replace("{dir}", this.#tls));
    return present;
  }
}

const existing = (path: string) => (statSync(path, { throwIfNoEntry: false })?.isFile() ? path : undefined);
