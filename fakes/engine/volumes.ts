// SPDX-License-Identifier: Apache-2.0

/** Named volumes: a folder each, and what the API shows of it. */
import { chmodSync, mkdirSync } from "node:fs";
import { timestamp } from "./clock.ts";
import type { Events } from "./events.ts";
import { checkName, fail, type Filters, hasLabels, matcher } from "./http.ts";
import { type Collection, randomHex, removeTree, type State } from "./state.ts";

export interface Volume {
  Name: string;
  Driver: string;
  Mountpoint: string;
  CreatedAt: string;
  Labels: Record<string, string>;
  Scope: "local";
  Options: Record<string, string>;
}

interface VolumeRequest {
  Name?: string;
  Driver?: string;
  Label?: Record<string, string>;
  Options?: Record<string, string>;
}

const FILTERS: Filters<Volume> = {
  label: ({ Labels }, wanted) => hasLabels(Labels, wanted),
  name: ({ Name }, wanted) => wanted.some((want) => Name.includes(want)),
};

export class Volumes {
  readonly #all: Collection<Volume>;

  constructor(
    private readonly state: State,
    private readonly events: Events,
  ) {
    this.#all = state.collection("volumes");
  }

  create({ Name: name = randomHex(64), Driver, Label = {}, Options = {} }: VolumeRequest): Volume {
    if (this.#all.has(name)) {
      fail(500, "volume already exists", `volume with name ${name} already exists`);
    }
    checkName(name, "running volume create option");
    const data = this.state.path("volumes", name);
    mkdirSync(data);
    chmodSync(data, 0o755);
    const volume: Volume = {
      Name: name,
      Driver: Driver || "local",
      Mountpoint: data,
      CreatedAt: timestamp(),
      Labels: Label,
      Scope: "local",
      Options,
    };
    this.#all.set(name, volume);
    this.events.emit("volume", "create", "", { name });
    return volume;
  }

  get(name: string): Volume | undefined {
    return this.#all.get(name);
  }

  list(query: URLSearchParams): Volume[] {
    return [...this.#all.values()].filter(matcher(query, FILTERS));
  }

  /** Nothing may use it any more. */
  remove(name: string): void {
    this.#all.delete(name);
    removeTree(this.state.path("volumes", name));
    this.events.emit("volume", "remove", "", { name });
  }
}
