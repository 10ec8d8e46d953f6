//! The DSDT's code: names of devices, and the resources that they use (ACPI specification 6.5, chapters 6, 7 and 19).

use crate::{ISA_BRIDGE, PCI_DEVICES, PcConfig};
use abi::{irq, mmio, ports};
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Name, Package, PackageBuilder, ResourceTemplate, Scope,
    ZERO,
};
use acpi_tables::{Aml, AmlSink};
use alloc::vec::Vec;

/// What follows the DSDT's header.
pub(crate) fn aml(machine: &PcConfig) -> Vec<u8> {
    let mut code = Vec::new();
    // A sleep type for each of PM1a and PM1b, and two reserved fields (section 7.4.2).
    Name::new("_S5_".into(), &Package::new(Vec::from([&ports::S5 as &dyn Aml, &ports::S5, &ZERO, &ZERO])))
        .to_aml_bytes(&mut code);
    Scope::new("_SB_".into(), Vec::from([&pci_root(machine) as &dyn Aml])).to_aml_bytes(&mut code);
    code
}

/// AML that is encoded already.
struct Encoded(Vec<u8>);

impl Encoded {
    fn new(object: &dyn Aml) -> Self {
        let mut bytes = Vec::new();
        object.to_aml_bytes(&mut bytes);
        Self(bytes)
    }
}

impl Aml for Encoded {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

/// The host bridge: what the buses below it may use, and where their interrupts go.
fn pci_root(machine: &PcConfig) -> Encoded {
    const CONFIGURATION_PORTS: u8 = 8;
    let buses = AddressSpace::new_bus_number(0u16, 0xff);
    let configuration = IO::new(ports::PCI_ADDRESS, ports::PCI_ADDRESS, 1, CONFIGURATION_PORTS);
    let low_ports = AddressSpace::new_io(0u16, ports::PCI_ADDRESS - 1, None);
    let high_ports = AddressSpace::new_io(ports::PCI_ADDRESS + u16::from(CONFIGURATION_PORTS), u16::MAX, None);
    let (first, last) = (mmio::PCI_WINDOW.start, mmio::PCI_WINDOW.end - 1);
    let memory = AddressSpace::new_memory(AddressSpaceCacheable::NotCacheable, true, first, last, None);
    let resources =
        ResourceTemplate::new(Vec::from([&buses as &dyn Aml, &configuration, &low_ports, &high_ports, &memory]));
    Encoded::new(&Device::new(
        "PCI0".into(),
        Vec::from([
            &Name::new("_HID".into(), &EISAName::new("PNP0A03")) as &dyn Aml,
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_CRS".into(), &resources),
            &Name::new("_PRT".into(), &interrupt_routing(machine)),
            &isa_bridge(),
        ]),
    ))
}

/// `_PRT` (section 6.2.13): each pin of each device is wired to a pin of the IOAPIC.
fn interrupt_routing(machine: &PcConfig) -> PackageBuilder {
    const ANY_FUNCTION: u32 = 0xffff;
    let mut routes = PackageBuilder::new();
    for (device, pin) in PCI_DEVICES.flat_map(|device| (0..4).map(move |pin| (device, pin))) {
        let address = u32::from(device) << 16 | ANY_FUNCTION;
        let gsi = machine.pci_gsi(device, pin);
        // A source of zero says that the last field is a GSI.
        routes.add_element(&Package::new(Vec::from([&address as &dyn Aml, &pin, &ZERO, &gsi])));
    }
    routes
}

/// An ISA interrupt, edge-triggered and active high: the descriptor without flags (section 6.4.2.1). The extended descriptor has a
/// GSI instead, and the timer's depends on whether the operating system uses the IOAPIC.
struct Irq(u8);

impl Aml for Irq {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        const IRQ_NO_FLAGS: u8 = 0x22;
        sink.byte(IRQ_NO_FLAGS);
        sink.word(1 << self.0);
    }
}

/// A device of the ISA bus, where it has always been.
struct IsaDevice {
    name: &'static str,
    id: &'static str,
    /// First ports, and how many.
    ports: &'static [(u16, u8)],
    irq: u8,
}

const ISA_DEVICES: [IsaDevice; 4] = [
    IsaDevice { name: "PIT_", id: "PNP0100", ports: &[(ports::PIT, 4)], irq: irq::TIMER },
    IsaDevice {
        name: "KBD_",
        id: "PNP0303",
        ports: &[(ports::KEYBOARD_DATA, 1), (ports::KEYBOARD_COMMAND, 1)],
        irq: irq::KEYBOARD,
    },
    IsaDevice { name: "COM1", id: "PNP0501", ports: &[(ports::COM1, 8)], irq: irq::COM1 },
    IsaDevice { name: "RTC_", id: "PNP0B00", ports: &[(ports::RTC, 2)], irq: irq::RTC },
];

fn isa_bridge() -> Encoded {
    let devices = ISA_DEVICES.map(|device| device.encoded());
    let address = Name::new("_ADR".into(), &(u32::from(ISA_BRIDGE) << 16));
    let mut children = Vec::from([&address as &dyn Aml]);
    children.extend(devices.iter().map(|device| device as &dyn Aml));
    Encoded::new(&Device::new("ISA_".into(), children))
}

impl IsaDevice {
    fn encoded(&self) -> Encoded {
        let irq = Irq(self.irq);
        let ports: Vec<_> = self.ports.iter().map(|&(first, count)| IO::new(first, first, 1, count)).collect();
        let mut resources: Vec<&dyn Aml> = ports.iter().map(|ports| ports as &dyn Aml).collect();
        resources.push(&irq);
        Encoded::new(&Device::new(
            self.name.into(),
            Vec::from([
                &Name::new("_HID".into(), &EISAName::new(self.id)) as &dyn Aml,
                &Name::new("_CRS".into(), &ResourceTemplate::new(resources)),
            ]),
        ))
    }
}
