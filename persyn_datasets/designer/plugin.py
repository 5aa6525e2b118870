"""What Data Designer's entry point names."""

from data_designer.plugins.plugin import Plugin, PluginType

plugin = Plugin(
    impl_qualified_name="persyn_datasets.designer.generator.RoutedColumnGenerator",
    config_qualified_name="persyn_datasets.designer.config.RoutedColumnConfig",
    plugin_type=PluginType.COLUMN_GENERATOR,
)
