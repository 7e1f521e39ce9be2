{
  # CMakeLists.txt is the one build definition; this only hands over to it, for tools that speak node-gyp.
  "targets": [
    {
      "target_name": "baton",
      "type": "none",
      "actions": [
        {
          "action_name": "cmake",
          "inputs": ["CMakeLists.txt"],
          # Never made: so cmake decides each time what is out of date.
          "outputs": ["<(PRODUCT_DIR)/cmake.always"],
          "action": ["node", "<(module_root_dir)/scripts/install.mjs", "--build", "--output", "<(PRODUCT_DIR)"]
        }
      ]
    }
  ]
}
