# `godwitd eval`: its parts, its samples read by an oracle, and a run on the
# shipped model.
if(TARGET model AND CRITERION_FOUND AND NOT GODWIT_SANITIZE STREQUAL "thread")
  set(eval_parts draw words task needle lookup trace count mqar fit score)
  list(TRANSFORM eval_parts REPLACE "(.+)" "${PROJECT_SOURCE_DIR}/node/eval_\\1.c")
  add_executable(test_node_eval
    ${PROJECT_SOURCE_DIR}/tests/unit/node/test_eval.c ${eval_parts})
  target_link_libraries(test_node_eval PRIVATE model PkgConfig::CRITERION)
  target_compile_options(test_node_eval PRIVATE ${STRICT_TESTS} ${QUICK})
  add_test(NAME unit.node.eval COMMAND test_node_eval
    WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
  set_tests_properties(unit.node.eval PROPERTIES LABELS unit TIMEOUT 1200
    ENVIRONMENT "${SANITIZER_ENVIRONMENT}"
    FAIL_REGULAR_EXPRESSION "Tested: 0 ;LeakSanitizer;runtime error:")
endif()
if(TARGET godwitd)
  foreach(name IN ITEMS samples run)
    add_test(NAME eval.${name} COMMAND /usr/bin/python3 -B
      ${CMAKE_CURRENT_LIST_DIR}/check_${name}.py $<TARGET_FILE:godwitd>
      ${PROJECT_SOURCE_DIR}/assets/models/godwit-tiny)
    set_tests_properties(eval.${name} PROPERTIES LABELS eval TIMEOUT 1800
      ENVIRONMENT "${SANITIZER_ENVIRONMENT}"
      FAIL_REGULAR_EXPRESSION "LeakSanitizer;runtime error:")
  endforeach()
endif()
