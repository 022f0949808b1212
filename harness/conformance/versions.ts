// SPDX-License-Identifier: Apache-2.0

/** How old a driver's contract is, by the calls that came later and that it does not implement. */
import { Refused } from "./finding.ts";
import { Driver } from "./driver.ts";

/** Who a driver is and what it implements. */
export interface Identity {
  name: string;
  version: string;
  defaultImage: string;
  managesLifecycle: boolean;
  /** The calls that it answers with UNIMPLEMENTED, as far as its contract lets it. */
  missing: Set<string>;
  /** The version of the contract that it keeps, such as "0.0.107". */
  contract: string;
  /** Which gateways it can serve. */
  serves: string;
}

/** Asks a driver. @throws Refused when it does not answer GetCapabilities: a gateway would not start. */
export async function identify(socket: string): Promise<Identity> {
  const driver = new Driver(socket);
  try {
    const capabilities = await driver.getCapabilities();
    const nobody = { id: crypto.randomUUID(), name: "dc-nobody" };
    const workspace = `dc-${crypto.randomUUID().slice(0, 8)}`;
    const missing = new Set<string>();
    const probe = (call: Promise<unknown>) =>
      call.catch((error: unknown) => {
        if (error instanceof Refused && error.code === "UNIMPLEMENTED") missing.add(error.method);
      });
    await Promise.all([
      probe(driver.getListenerRequirements()),
      probe(driver.stop(nobody)),
      probe(driver.start(nobody)),
      probe(driver.ensureWorkspace(workspace).finally(() => probe(driver.deleteWorkspace(workspace)))),
    ]);
    // It was in the contract from the start; no gateway called it before there was StartSandbox.
    if (!missing.has("StartSandbox")) missing.delete("StopSandbox");
    return {
      name: capabilities.driver_name,
      version: capabilities.driver_version,
      defaultImage: capabilities.default_image,
      managesLifecycle: capabilities.gateway_manages_lifecycle,
      missing,
      ...contractOf(missing),
    };
  } finally {
    driver.close();
  }
}

/** What a gateway can do with a driver that lacks these calls. It accepts that there are no listeners or workspaces. */
function contractOf(missing: Set<string>): Pick<Identity, "contract" | "serves"> {
  if (missing.has("StartSandbox")) {
    const contract = missing.has("GetGatewayListenerRequirements") ? "0.0.96" : "0.0.97";
    return {
      contract,
      serves: "gateways up to 0.0.104; users of a later one cannot stop and start sandboxes",
    };
  }
  const contract = missing.has("EnsureWorkspace") ? "0.0.105" : "0.0.107";
  return { contract, serves: "gateways 0.0.96 to 0.0.116" };
}
