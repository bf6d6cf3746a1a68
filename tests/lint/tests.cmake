# What needs no compiler: includes keep to their layers, and the check works.
add_test(NAME lint.layers COMMAND sh ${PROJECT_SOURCE_DIR}/base/layers.sh)
add_test(NAME lint.layers_refuses
  COMMAND sh ${CMAKE_CURRENT_LIST_DIR}/layers_test.sh ${PROJECT_SOURCE_DIR}/base/layers.sh)
set_tests_properties(lint.layers lint.layers_refuses PROPERTIES LABELS lint TIMEOUT 240)
