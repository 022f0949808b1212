// SPDX-License-Identifier: Apache-2.0

/** The container of a sandbox. The supervisor and the gateway depend on every name and path in it. */
import { existsSync } from "node:fs";
import type { DriverSandbox__Output as Sandbox } from "../../proto/v0.0/types/openshell/compute/v1/DriverSandbox.ts";
import { type DriverConfig, type MountRequest, withoutSlash } from "./driver-config.ts";
import { containerName, LABEL, tokenSecret, volumeName } from "./names.ts";
import { CPU_PERIOD, cpuQuota, memoryBytes } from "./resources.ts";
import type { Settings } from "./settings.ts";

const TOKEN_PATH = "/etc/openshell/auth/sandbox.jwt";
const TLS_PATHS = {
  ca: "/etc/openshell/tls/client/ca.crt",
  cert: "/etc/openshell/tls/client/tls.crt",
  key: "/etc/openshell/tls/client/tls.key",
};
const SUPERVISOR_FOLDER = "/opt/openshell/bin";

export interface ContainerInput {
  sandbox: Sandbox;
  config: DriverConfig;
  devices: string[] | null;
  /** As the user named it, and the id that the name stands for now. */
  image: { reference: string; id: string; user: string };
  withToken: boolean;
  /** The host's address on the sandboxes' bridge, where there is one. */
  bridgeAddress: string | null;
}

/** The body of libpod's containers/create. */
export function containerSpec(settings: Settings, input: ContainerInput): object {
  const { sandbox, config, devices, image, withToken, bridgeAddress } = input;
  const resources = sandbox.spec?.template?.resources;
  const mounts = userMounts(config.mounts);
  // Podman before 4.7 does not know the word: it would write it into the container's hosts file as it stands.
  const host = settings.hostGatewayIp || bridgeAddress || "host-gateway";
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
    env: environment(settings, input),
    hostname: `sandbox-${sandbox.name}`,
    user: "0:0",
    entrypoint: [`${SUPERVISOR_FOLDER}/openshell-sandbox`],
    command: ["--workdir", "/sandbox"],
    stop_timeout: settings.stopTimeout,
    volumes: [{ name: volumeName(sandbox.id), dest: "/sandbox", options: ["rw"] }, ...mounts.volumes],
    image_volumes: [
      { source: settings.supervisorImage, destination: SUPERVISOR_FOLDER, rw: false },
      ...mounts.images,
    ],
    mounts: [
      { type: "tmpfs", source: "tmpfs", destination: "/run/netns", options: ["rw", "nosuid", "nodev"] },
      ...tlsMounts(settings.tls),
      ...mounts.others,
    ],
    secrets: withToken
      ? [{ source: tokenSecret(sandbox.id), target: TOKEN_PATH, uid: 0, gid: 0, mode: 0o400 }]
      : [],
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
      cpu: { quota: cpuQuota(resources?.cpu_limit || "2"), period: CPU_PERIOD },
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

function environment(
  settings: Settings,
  { sandbox, image, withToken }: ContainerInput,
): Record<string, string> {
  const { spec } = sandbox;
  const user = { ...spec?.template?.environment, ...spec?.environment };
  const sorted = Object.fromEntries(Object.entries(user).toSorted(([a], [b]) => (a < b ? -1 : 1)));
  const main = spec && spec.command.length > 0 ? spec : { command: ["/bin/bash", "-l"], tty: true };
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
    OPENSHELL_MAIN_PROCESS_SPEC: JSON.stringify({ version: 1, command: main.command, tty: main.tty }),
    OPENSHELL_TELEMETRY_ENABLED: String(settings.telemetry),
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

function tlsMounts(tls: Settings["tls"]): object[] {
  const options = ["ro", "rbind", ...(existsSync("/sys/fs/selinux") ? ["z"] : [])];
  return (["ca", "cert", "key"] as const)
    .filter(() => tls)
    .map((part) => ({ type: "bind", source: tls?.[part], destination: TLS_PATHS[part], options }));
}

/** The mounts of driver_config, in the three lists that libpod has for them. */
function userMounts(mounts: MountRequest[]): { volumes: object[]; images: object[]; others: object[] } {
  const of = (type: MountRequest["type"]): MountRequest[] => mounts.filter((mount) => mount.type === type);
  const access = ({ readOnly }: MountRequest): string => (readOnly ? "ro" : "rw");
  const relabel = { shared: "z", private: "Z" };
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
        destination: withoutSlash(mount.target),
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
