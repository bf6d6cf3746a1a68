# A real node, called by Python's grpcio and by godwitctl: one ctest per file.
if(TARGET godwitd AND TARGET godwitctl AND TARGET proto_python)
  set(e2e_environment
    GODWITD=$<TARGET_FILE:godwitd> GODWITCTL=$<TARGET_FILE:godwitctl>
    PYTHONPATH=${CMAKE_BINARY_DIR}/python
    GODWIT_TEST_MODEL=${PROJECT_SOURCE_DIR}/assets/models/godwit-tiny)
  if(GODWIT_SANITIZE) # several times slower; fewer deaths, longer waits
    list(APPEND e2e_environment KILLS=5 GODWIT_TEST_CALL_S=240
         GODWIT_TEST_SANITIZED=1)
  endif()
  file(GLOB e2e_files CONFIGURE_DEPENDS ${CMAKE_CURRENT_LIST_DIR}/test_*.py)
  foreach(file IN LISTS e2e_files)
    get_filename_component(stem ${file} NAME_WE)
    string(REPLACE "test_" "" stem ${stem})
    # The distribution's own interpreter: another one does not see its grpc.
    add_test(NAME e2e.${stem} COMMAND /usr/bin/python3 -B ${file}
      WORKING_DIRECTORY ${CMAKE_CURRENT_LIST_DIR})
    set_tests_properties(e2e.${stem} PROPERTIES LABELS e2e TIMEOUT 1200
      RUN_SERIAL TRUE # each wants both cores, and they time things
      ENVIRONMENT "${e2e_environment}")
  endforeach()
  # The same with everything in the memory of a device: kernels/apart/apart.h.
  foreach(stem IN ITEMS fork prefix kill)
    add_test(NAME e2e.apart.${stem}
      COMMAND /usr/bin/python3 -B ${CMAKE_CURRENT_LIST_DIR}/test_${stem}.py
      WORKING_DIRECTORY ${CMAKE_CURRENT_LIST_DIR})
    set_tests_properties(e2e.apart.${stem} PROPERTIES LABELS e2e TIMEOUT 1200
      RUN_SERIAL TRUE
      ENVIRONMENT "${e2e_environment};GODWIT_BACKEND=apart;KILLS=5")
  endforeach()
endif()
