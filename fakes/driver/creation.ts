// SPDX-License-Identifier: Apache-2.0

/** Creating a sandbox: checked first, then everything of it is made, or nothing. */
import type { DriverSandbox__Output as Sandbox } from "../../proto/v0.0/types/openshell/compute/v1/DriverSandbox.ts";
import type { Logger } from "../log.ts";
import { alreadyExists, internal, precondition } from "../status.ts";
import { type ContainerInput, containerSpec } from "./container.ts";
import { checkMounts, type DriverConfig, readDriverConfig } from "./driver-config.ts";
import type { Host } from "./host.ts";
import { containerName, tokenSecret, volumeName } from "./names.ts";
import { EngineError, isDuplicate, isGone, messageOf, type Podman } from "./podman.ts";
import { checkQuantities, gpuDevices } from "./resources.ts";
import type { Settings } from "./settings.ts";

/** Steps that take back what was made so far. */
type Undo = (() => Promise<unknown>)[];

interface Image {
  Id?: string;
  Config?: { User?: string } | null;
}

export class Creation {
  /** By id, which is a digest of all that an image is. */
  readonly #images = new Map<string, Image>();
  #hasSupervisor = false;

  constructor(
    private readonly settings: Settings,
    private readonly podman: Podman,
    private readonly host: Host,
    private readonly log: Logger,
  ) {}

  /** @throws Status with the code and message that CreateSandbox would have */
  async validate(sandbox: Sandbox): Promise<DriverConfig> {
    const template = sandbox.spec?.template ?? null;
    const config = readDriverConfig(template?.driver_config ?? null);
    checkQuantities(template?.resources ?? null);
    if (template?.agent_socket_path) throw precondition("template.agent_socket_path is not supported");
    gpuDevices(sandbox, config.cdiDevices);
    checkMounts(config.mounts, this.settings.enableBindMounts);
    for (const { type, source } of config.mounts) if (type === "volume") await this.#checkVolume(source);
    return config;
  }

  async #checkVolume(name: string): Promise<void> {
    interface Volume {
      Driver?: string;
      Options?: Record<string, string> | null;
    }
    const volume = await this.podman.get<Volume>(`/volumes/${name}/json`).catch((error: unknown) => {
      throw isGone(error) ? precondition(`podman volume '${name}' does not exist`) : error;
    });
    const local = !volume.Driver || volume.Driver === "local";
    const options = (volume.Options?.o ?? "").split(",").map((option) => option.trim().toLowerCase());
    const isBind = options.includes("bind") || options.includes("rbind");
    if (local && isBind && !this.settings.enableBindMounts) {
      throw precondition(
        `podman volume '${name}' is backed by a host bind mount and requires enable_bind_mounts = true in ` +
          "[openshell.drivers.podman]",
      );
    }
  }

  /**
   * Makes everything of a sandbox and starts it, or leaves nothing. `signal` ends it at any point; `made` is told the
   * container's id as soon as there is one.
   */
  async make(
    sandbox: Sandbox,
    config: DriverConfig,
    signal: AbortSignal,
    made: (containerId: string) => void,
  ): Promise<void> {
    const undo: Undo = [];
    try {
      signal.throwIfAborted();
      const fields = { sandbox_id: sandbox.id, container: containerName(sandbox) };
      this.log.info("Creating sandbox container", fields);
      const container = await this.#steps(sandbox, config, signal, undo);
      made(container);
      signal.throwIfAborted();
      await this.#start(container);
      this.log.info("Sandbox container started", fields);
    } catch (error) {
      const fields = { sandbox_id: sandbox.id, error: messageOf(error) };
      this.log.warn("Failed to create sandbox; cleaning up", fields);
      // Somebody may have removed it since.
      this.#hasSupervisor = false;
      for (const step of undo.toReversed()) {
        await step().catch((left: unknown) =>
          this.log.warn("Failed to clean up", { sandbox_id: sandbox.id, error: messageOf(left) }),
        );
      }
      if (isDuplicate(error)) throw alreadyExists("sandbox already exists");
      // Whatever the engine could not find here, it was not the sandbox.
      if (error instanceof EngineError) throw internal(error.message);
      throw error;
    }
  }

  /** All but the start. Resolves with the container's id. */
  async #steps(sandbox: Sandbox, config: DriverConfig, signal: AbortSignal, undo: Undo): Promise<string> {
    const { podman, settings } = this;
    const { bridgeAddress } = this.host;
    const image = await this.#prepareImages(sandbox, config, signal);
    await this.#createVolume(sandbox.id, undo);
    const token = sandbox.spec?.sandbox_token.trim() ?? "";
    if (token) await this.#createSecret(tokenSecret(sandbox.id), token, undo);
    signal.throwIfAborted();
    const devices = gpuDevices(sandbox, config.cdiDevices);
    const withToken = token !== "";
    const body = containerSpec(settings, { sandbox, config, devices, image, withToken, bridgeAddress });
    // By its name: the engine may have made it although its answer did not come.
    const container = `/containers/${containerName(sandbox)}`;
    undo.push(() => podman.discard(`${container}?force=true&volumes=true&timeout=0`));
    const made = podman.json<{ Id: string }>("POST", "/containers/create", { body });
    const { Id } = await made.catch((error: unknown) => {
      // Somebody else's, with all that is in it.
      if (isDuplicate(error)) undo.length = 0;
      throw error;
    });
    return Id;
  }

  /**
   * Starts a container that was just made. Podman 4 makes the firewall's chains of a network with its first container,
   * and fails when two are started at once ("Chain already exists"): then they are there for a second try. And while it
   * looks for a free port for one container it may hold for a moment the one that it has promised to another.
   */
  async #start(containerId: string): Promise<void> {
    const start = () => this.podman.call("POST", `/containers/${containerId}/start`);
    const again = (error: unknown) => {
      if (!/chain already exists|address already in use/i.test(messageOf(error))) throw error;
      this.log.warn("Starting a container again", { error: messageOf(error) });
      return start();
    };
    await start()
      .catch(again)
      .catch((error: unknown) => {
        // No sandbox is there already, whatever else is.
        throw error instanceof EngineError ? internal(error.message) : error;
      });
  }

  async #prepareImages(
    sandbox: Sandbox,
    config: DriverConfig,
    signal: AbortSignal,
  ): Promise<ContainerInput["image"]> {
    const { podman, settings } = this;
    const reference = sandbox.spec?.template?.image || settings.sandboxImage;
    if (!reference) {
      throw precondition(
        "no sandbox image configured: set default_image in [openshell.drivers.podman] or provide an image in the " +
          "sandbox template",
      );
    }
    const mounted = config.mounts.filter(({ type }) => type === "image").map(({ source }) => source);
    const [pulled] = await Promise.all([
      ...[reference, ...mounted].map((image) => podman.pull(image, settings.pullPolicy, signal)),
      this.#pullSupervisor(signal),
    ]);
    const { Id: id, Config } = await this.#image(pulled || reference);
    if (!id) {
      throw precondition(`podman image '${reference}' inspection did not return an immutable image ID`);
    }
    return { reference, id, user: Config?.User ?? "" };
  }

  async #pullSupervisor(signal: AbortSignal): Promise<void> {
    const { supervisorImage } = this.settings;
    if (this.#hasSupervisor) return;
    const policy = supervisorPullPolicy(supervisorImage);
    await this.podman.pull(supervisorImage, policy, signal);
    this.#hasSupervisor = policy === "missing";
  }

  async #image(idOrReference: string): Promise<Image> {
    const seen = this.#images.get(idOrReference);
    if (seen) return seen;
    const image = await this.podman.get<Image>(`/images/${encodeURIComponent(idOrReference)}/json`);
    if (image.Id) this.#images.set(image.Id, image);
    return image;
  }

  /** A volume that is there already belongs to a container (then the engine keeps it), or to a sandbox long dead. */
  async #createVolume(sandboxId: string, undo: Undo): Promise<void> {
    const name = volumeName(sandboxId);
    const path = `/volumes/${name}`;
    undo.push(() => this.podman.discard(path));
    const make = () => this.podman.call("POST", "/volumes/create", { body: { Name: name } });
    await make().catch(async (error: unknown) => {
      if (!isDuplicate(error)) throw error;
      await this.podman.discard(path).catch((inUse: unknown) => {
        undo.length = 0;
        throw inUse;
      });
      this.log.warn("Replacing the volume of a sandbox that is gone", { volume: name });
      await make();
    });
  }

  async #createSecret(name: string, value: string, undo: Undo): Promise<void> {
    const path = `/secrets/${name}`;
    undo.push(() => this.podman.discard(path));
    const make = () => this.podman.call("POST", `/secrets/create?name=${name}`, { body: `${value}\n` });
    await make().catch(async (error: unknown) => {
      if (!isDuplicate(error)) throw error;
      await this.podman.discard(path);
      await make();
    });
  }
}

/** Tags that move are asked for again on every create; a pinned image is pulled once. */
function supervisorPullPolicy(reference: string): string {
  const tag = reference.includes("@") ? "" : (/:([^/]*)$/.exec(reference)?.[1] ?? "latest");
  return tag === "dev" || tag === "latest" ? "newer" : "missing";
}
