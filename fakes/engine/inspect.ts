// SPDX-License-Identifier: Apache-2.0

/** Containers as the API shows them: of Podman's fields those that say something about a process. */
import { unixSeconds } from "./clock.ts";
import { type Container, healthTest, hostnameOf, isUp, type Mount, rootfs, stopSignal } from "./container.ts";

/** An entry of the list. */
export const listEntry = (container: Container): object => ({
  Id: container.id,
  Names: [container.name],
  Image: container.imageName,
  ImageID: container.imageId,
  Command: container.spec.command,
  Created: container.created,
  StartedAt: unixSeconds(container.startedAt),
  Exited: container.status === "exited",
  ExitedAt: unixSeconds(container.finishedAt),
  ExitCode: container.exitCode,
  State: container.status,
  Status: healthTest(container) ? (container.health?.Status ?? "starting") : "",
  Pid: container.pid,
  Labels: container.spec.labels,
  Mounts: container.mounts.map(({ destination }) => destination),
  Networks: container.networks,
  Ports: container.ports,
});

export function inspect(container: Container): object {
  const { spec } = container;
  const [path = "", ...args] = [...spec.entrypoint, ...spec.command];
  return {
    Id: container.id,
    Name: container.name,
    Created: container.created,
    Path: path,
    Args: args,
    State: state(container),
    Image: container.imageId,
    ImageName: container.imageName,
    Driver: "overlay",
    GraphDriver: { Name: "overlay", Data: { MergedDir: rootfs(container) } },
    Mounts: container.mounts.filter(({ type }) => type !== "tmpfs").map(mount),
    NetworkSettings: { Ports: bindings(container), Networks: networks(container) },
    Config: config(container),
    HostConfig: hostConfig(container),
  };
}

function state(container: Container): object {
  const { status } = container;
  return {
    Status: status,
    Running: status === "running" || status === "stopping",
    Paused: status === "paused",
    OOMKilled: false,
    Pid: container.pid,
    ...(isUp(container) && { ConmonPid: container.monitor?.pid ?? 0 }),
    ExitCode: container.exitCode,
    Error: container.error,
    StartedAt: container.startedAt,
    FinishedAt: container.finishedAt,
    ...(container.health && { Health: container.health }),
    ...(container.stoppedByUser && { StoppedByUser: true }),
  };
}

const mount = ({ type, source, path, destination, options, writable }: Mount): object => ({
  Type: type,
  ...(type === "volume" && { Name: source }),
  Source: type === "volume" ? path : source,
  Destination: destination,
  Driver: type === "volume" ? "local" : "",
  Options: options,
  RW: writable,
});

const bindings = ({ ports }: Container): object =>
  Object.fromEntries(
    ports.map(({ container_port, protocol, host_ip, host_port }) => [
      `${container_port}/${protocol}`,
      [{ HostIp: host_ip || "0.0.0.0", HostPort: String(host_port) }],
    ]),
  );

function networks(container: Container): object {
  const address = isUp(container) ? "127.0.0.1" : "";
  return Object.fromEntries(
    container.networks.map((name) => [name, { Gateway: address, IPAddress: address }]),
  );
}

function config(container: Container): object {
  const { spec } = container;
  const test = healthTest(container);
  return {
    Hostname: hostnameOf(container.id, spec),
    User: spec.user ?? "",
    Tty: spec.terminal ?? false,
    Env: Object.entries(container.environment).map(([key, value]) => `${key}=${value}`),
    Cmd: spec.command,
    Entrypoint: spec.entrypoint,
    Image: container.imageName,
    WorkingDir: container.workingDirectory,
    Labels: spec.labels,
    StopSignal: stopSignal(container),
    StopTimeout: spec.stop_timeout ?? 10,
    ...(test && { Healthcheck: { ...spec.healthconfig, Test: test, test: undefined } }),
    Secrets: (spec.secrets ?? []).map(({ source, uid = 0, gid = 0, mode = 0o444 }) => ({
      Name: source,
      UID: uid,
      GID: gid,
      Mode: mode,
    })),
  };
}

function hostConfig(container: Container): object {
  const { spec, mounts } = container;
  const { cpu, memory, pids } = spec.resource_limits ?? {};
  const { period = 0, quota = 0 } = cpu ?? {};
  const capabilities = (names: string[] = []): string[] =>
    names.map((name) => `CAP_${name.replace(/^CAP_/, "")}`);
  return {
    NetworkMode: "bridge",
    PortBindings: bindings(container),
    ExtraHosts: spec.hostadd ?? [],
    Privileged: false,
    CapAdd: capabilities(spec.cap_add),
    CapDrop: capabilities(spec.cap_drop),
    SecurityOpt: [
      ...(spec.no_new_privileges ? ["no-new-privileges"] : []),
      ...(spec.seccomp_profile_path ? [`seccomp=${spec.seccomp_profile_path}`] : []),
    ],
    Tmpfs: Object.fromEntries(
      mounts
        .filter(({ type }) => type === "tmpfs")
        .map(({ destination, options }) => [destination, options.join(",")]),
    ),
    Memory: memory?.limit ?? 0,
    NanoCpus: period > 0 ? Math.round((quota / period) * 1e9) : 0,
    CpuPeriod: period,
    CpuQuota: quota,
    // Where Podman looks; a "PidsLimit" beside "cpu" and "memory" means nothing to it.
    PidsLimit: pids?.limit ?? 0,
  };
}
